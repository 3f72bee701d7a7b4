"""Tables in Markdown: losses and ranks, metrics, seconds, and whether the default rule keeps what it is to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import METRICS
from .contenders import CONTENDERS, GATED, PEERS
from .results import Row, Standing, standings

OWN = ("ours", "ours-third", "ours-thrice")
LEVEL = 1.01  # a loss up to this multiple is level with another
GRID = 1.05  # of the best of our own grid
POINTS = 1.0  # of accuracy, which count as much


def report(rows: list[Row]) -> str:
    """All tables of the rows."""
    found = standings(rows)
    parts = [
        "Mean training loss of the last sixth of the steps (rank); * where the best rate is the least or the largest.",
        *_table(found, _ranked(found)),
        "",
        "On test data.",
        *_table(found, lambda task, name: f"{found[task][name].metric:.4g}", metrics=True),
        "",
        "Seconds of the processor.",
        *_table(found, lambda task, name: f"{found[task][name].seconds:.3g}"),
        "",
        f"The default rule: its loss over that of others, at most {GRID:g} of the best of its own lengths (or the same "
        f"accuracy within {POINTS:g} point), at most {LEVEL:g} of the best peer, in no more seconds, below frozen; "
        "its accuracy at least that of the gated recurrences.",
        *_verdicts(found),
    ]
    return "\n".join(parts)


def report_seconds(rows: list[Row], timed: list[Row]) -> str:
    """The table of runs of equal seconds.

    Args:
        rows: of equal steps, the default rule among them.
        timed: of its peers, for as many steps as they take in its time.
    """
    found, at_once = standings(rows), standings(timed)
    names = [name for name in PEERS if any(name in of_task for of_task in at_once.values())]
    steps = {(row.task, row.contender): row.steps for row in (*rows, *timed)}
    lines = ["Equal seconds: loss (steps), and that of the default rule over the best of the others."]
    lines += [
        f"| task | seeds | ours | {' | '.join(names)} | over the best |",
        "|---|---|---|" + "---|" * (len(names) + 1),
    ]
    for task, peers in at_once.items():
        all_of = {"ours": found[task]["ours"], **peers}
        cells = [f"{all_of[n].loss:.3g} ({steps[task, n]})" if n in all_of else "" for n in ("ours", *names)]
        ratio = found[task]["ours"].loss / min(one.loss for one in peers.values())
        seeds = min(one.seeds for one in all_of.values())
        lines.append(f"| {task} | {seeds} | {' | '.join(cells)} | {ratio:.3f} |")
    return "\n".join(lines)


def _table(
    found: dict[str, dict[str, Standing]], cell: Callable[[str, str], str], metrics: bool = False
) -> Iterator[str]:
    names = [name for name in CONTENDERS if any(name in of_task for of_task in found.values())]
    yield f"| task | seeds | {' | '.join(names)} |"
    yield "|---|---|" + "---|" * len(names)
    for task, of_task in found.items():
        label = f"{task} ({METRICS[task].name})" if metrics else task
        seeds = min(one.seeds for one in of_task.values())
        yield f"| {label} | {seeds} | {' | '.join(cell(task, name) if name in of_task else '' for name in names)} |"


def _ranked(found: dict[str, dict[str, Standing]]) -> Callable[[str, str], str]:
    order = {task: sorted(of, key=lambda name, of=of: of[name].loss) for task, of in found.items()}

    def cell(task: str, name: str) -> str:
        one = found[task][name]
        return f"{one.loss:.3g}{'*' if one.is_edge else ''} ({order[task].index(name) + 1})"

    return cell


def _verdicts(found: dict[str, dict[str, Standing]]) -> Iterator[str]:
    yield "| task | own lengths | best peer | loss over it | seconds over it | over frozen | over muon | misses |"
    yield "|---|---|---|---|---|---|---|---|"
    for task, of_task in found.items():
        if "ours" in of_task:
            yield _verdict(task, of_task)


def _verdict(task: str, found: dict[str, Standing]) -> str:
    ours, misses = found["ours"], []
    own = min((found[name] for name in OWN if name in found), key=lambda one: one.loss)
    is_near = "accuracy" in METRICS[task].name and ours.metric >= own.metric - POINTS
    if ours.loss > GRID * own.loss and not is_near:
        misses.append("own lengths")
    peer = min((name for name in PEERS if name in found), key=lambda name: found[name].loss, default=None)
    shown = ["", "", ""]
    if peer is not None:
        losses, seconds = ours.loss / found[peer].loss, ours.seconds / found[peer].seconds
        misses += ["equal steps"] if losses > LEVEL else []
        misses += ["equal seconds"] if losses > LEVEL or seconds > 1 else []
        shown = [peer, f"{losses:.3f}", f"{seconds:.2f}"]
    beside = {name: ours.loss / found[name].loss if name in found else None for name in ("frozen", "muon")}
    if beside["frozen"] is not None and beside["frozen"] >= 1:
        misses.append("frozen")
    misses += [name for name in GATED if name in found and ours.metric < found[name].metric]
    shown += ["" if ratio is None else f"{ratio:.3f}" for ratio in beside.values()]
    return f"| {task} | {ours.loss / own.loss:.3f} | {' | '.join(shown)} | {', '.join(misses) or 'none'} |"

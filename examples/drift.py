"""How far do a million steps drift from the manifold? Rounding error against steps, ours and others', in float32.

Every method takes the same updates, of rank k and Frobenius norm 0.3, to stacks of 64 x 64 matrices; ours to stacks of
256 x 64 too. The directions: "random", new at each step; "turning", the same rotation at each step; "fixed", the same
gradient at each step, which the weight soon has no way to follow. Ours take them as a model does, by `projunn_step`
from `.grad`: D and T, with the retraction that is due every max(1000, n) steps and without, and the blocks of an
OrthogonalConv2d. Of the others it is the formula: QR and Cayley retractions, the exponential map, and POGO's step. The
error is the largest |W^H W - I|_F of a stack, looked at before each retraction; the bound is 1e-5 sqrt(n). At the end
the retraction is timed against the steps between two of them.

    python examples/drift.py --quick
    python examples/drift.py --cases T1 D4
    python examples/drift.py --draw results/drift.csv

`--out` gets a CSV for each case; drift.csv and drift.png show all cases that it holds, also from other calls.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import torch
from common.drawing import Curve, add_legend, draw_curves
from common.walks import CASES, DIRECTIONS, SIZE, Walk
from matplotlib.figure import Figure
from tqdm import tqdm

from unitary_layers import UnitaryLinear, UpdateRule, projunn_step
from unitary_layers.linalg import nearest_unitary, unitarity_error

BOUND = 1e-5 * SIZE**0.5
PERIOD = UpdateRule().retract_period(SIZE)
FIELDS = ("case", "direction", "step", "error")
LONG = ("T1", "D4", "tall-T1", "tall-D1", "conv-T1")  # the others end at a tenth of the steps
COST_SIZES = (64, 256, 1024)
RULES = {f"{variant}{rank}": f"{variant}, k = {rank}" for variant in "TD" for rank in (1, 4)}
FAMILIES = {  # the columns of the picture: the cases of each, and their labels
    "ours": RULES,
    "ours, 256 x 64": {f"tall-{name}": label for name, label in RULES.items()},
    "ours, blocks of a convolution": {f"conv-{name}": label for name, label in RULES.items()},
    "ours, never retracted": {f"{name}-without": label for name, label in RULES.items()},
    "others": {name: name for name in ("QR", "Cayley", "exp", "POGO")},
}


def looks(steps: int) -> Iterator[tuple[int, bool]]:
    """The numbers of steps after which to look, in order, and whether that is a row of the table.

    That is often at first, then before each retraction; of these, five rows for a factor of ten. A last step that
    retracts is no row, which would show the error after it.
    """
    rows = {min(m * 10**e, PERIOD - 1) for m in (1, 2, 3, 5, 7) for e in range(3)}
    rows |= {m * 10**e - 1 for m in (1, 2, 3, 5, 7) for e in range(3, 12)}
    rows |= {steps if steps % PERIOD else steps - 1}
    for number in sorted(rows | set(range(PERIOD - 1, steps, PERIOD)) | {steps}):
        if number <= steps:
            yield number, number in rows


def errors(walk: Walk) -> dict[str, float]:
    """The largest error of the matrices of each direction."""
    each = [unitarity_error(matrix) for matrix in walk.matrices()]
    return {name: max(float(e[i :: len(DIRECTIONS)].amax()) for e in each) for i, name in enumerate(DIRECTIONS)}


class Run:
    """One case on its way: `advance` goes to the next look."""

    def __init__(self, name: str, steps: int, out: Path) -> None:
        torch.manual_seed(0)
        out.mkdir(parents=True, exist_ok=True)
        self.name, self.path, self.walk = name, out / f"{name}.csv", CASES[name]()
        self.steps, self.done = steps if name in LONG else -(-steps // 10), 0
        self.looks = looks(self.steps)
        self.worst = dict.fromkeys(DIRECTIONS, 0.0)  # since the last row
        write(self.path, [])

    def advance(self) -> int:
        """Takes the steps up to the next look, and counts them; 0 at the end."""
        start = self.done
        target, is_row = next(self.looks, (start, False))
        for self.done in range(start + 1, target + 1):
            self.walk.step(self.done)
        if target > start:
            self.worst = {name: max(e, self.worst[name]) for name, e in errors(self.walk).items()}
        if is_row:
            rows = [dict(zip(FIELDS, (self.name, d, self.done, e), strict=True)) for d, e in self.worst.items()]
            write(self.path, rows, "a")
            self.worst = dict.fromkeys(DIRECTIONS, 0.0)
        return self.done - start


def write(path: Path, rows: Sequence[dict], mode: str = "w") -> None:
    with path.open(mode, newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if mode == "w":
            writer.writeheader()
        writer.writerows({**row, "error": f"{float(row['error']):.3e}"} for row in rows)


def collect(out: Path) -> Path:
    """drift.csv of all cases in a folder."""
    rows = [row for name in CASES if (out / f"{name}.csv").exists() for row in read(out / f"{name}.csv")]
    if not rows:
        raise ValueError(f"{out}: expected the rows of a case or more, got none")
    write(out / "drift.csv", rows)
    return out / "drift.csv"


def draw(path: Path) -> None:
    """PNG beside a table: a column for each kind of case, a row for each kind of directions."""
    rows = read(path)
    figure = Figure(figsize=(15, 10), layout="constrained")
    grid = figure.subplots(len(DIRECTIONS), len(FAMILIES), sharex=True, sharey=True, squeeze=False)
    for line, direction in zip(grid, DIRECTIONS, strict=True):
        for axes, (family, names) in zip(line, FAMILIES.items(), strict=True):
            curves = []
            for name, label in names.items():
                found = [row for row in rows if (row["case"], row["direction"]) == (name, direction)]
                curves.append(Curve(label, [(float(row["step"]), float(row["error"])) for row in found]))
            draw_curves(axes, curves, log=True)
            axes.axhline(BOUND, linestyle="-.", color="black", label=f"bound, {BOUND:g}")
            axes.set(xscale="log")
            if direction == DIRECTIONS[0]:
                axes.set_title(family)
                add_legend(axes, loc="upper left", fontsize="small")
        line[0].set_ylabel(f"{direction} directions\nlargest |W^H W - I|_F")
    for axes in grid[-1]:
        axes.set_xlabel("steps")
    figure.savefig(path.with_suffix(".png"), dpi=100)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def retraction_cost(n: int, repeats: int) -> tuple[float, float, float]:
    """Seconds of the thread in a step and in a retraction, in turn, and the share of the steps that the latter take."""
    layer, gradient = UnitaryLinear(n, n, bias=False), torch.randn(n, n)

    def step() -> None:
        layer.weight.grad = gradient
        projunn_step(layer)

    times: dict[str, list[float]] = {"step": [], "retraction": []}
    for _ in range(repeats + 1):
        for name, work in (("step", step), ("retraction", lambda: nearest_unitary(layer.weight.detach()))):
            start = time.thread_time()
            work()
            times[name].append(time.thread_time() - start)
    one, other = (median(values[1:]) for values in times.values())
    return one, other, other / layer.update.retract_period(n) / one


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=1_000_000, help=f"of {', '.join(LONG)}; others a tenth")
    options.add_argument("--quick", action="store_true", help="3,000 steps, half a minute")
    names = f"of {', '.join(CASES)}; none to draw what is there"
    options.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), metavar="CASE", help=names)
    options.add_argument("--out", type=Path, default=Path("runs/drift"))
    options.add_argument("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and run nothing")
    args = options.parse_args(argv)
    if args.draw is not None:
        return draw(args.draw)
    steps = 3_000 if args.quick else args.steps
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    torch.set_num_threads(1)  # matrices this small gain nothing from a second
    runs = [Run(name, steps, args.out) for name in args.cases]
    with tqdm(total=sum(run.steps for run in runs), unit="step", disable=not sys.stderr.isatty()) as bar:
        while moved := [run.advance() for run in runs]:
            if not any(moved):
                break
            bar.update(sum(moved))
    draw(collect(args.out))
    for run in runs:
        rows = read(run.path)
        worst = max(rows, key=lambda row: float(row["error"]))
        print(f"{run.name:12s} {run.steps} steps: at most {worst['error']} ({worst['direction']}), bound {BOUND:.1e}")
    for n in COST_SIZES:
        step, retraction, share = retraction_cost(n, 3 if args.quick else 20)
        print(f"n = {n}: a step {step * 1e6:.0f} us, a retraction {retraction * 1e6:.0f} us, {share:.2%} of the steps")


if __name__ == "__main__":
    main()

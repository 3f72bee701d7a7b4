"""Prints the tables of what a unitary layer costs, and writes them as CSV and PNG.

`python examples/benchmarks/run.py` takes about ten minutes on two cores; `--quick` one. Ratios are to the base of each
case, measured in turns with it: absolute times of a shared machine mean little. Peers are timed where they are
installed (`pip install -e ".[bench]"`). `--only copying`, which the full run leaves out, trains copying memory at delay
1,000 until the loss is 0.002, by a dense and by a factored gradient in turns: half an hour on two cores. So is
`--only distributed`: a step of two processes, which share gradients in each way there is, and the bytes that cross.

    python examples/benchmarks/run.py --quick
    python examples/benchmarks/run.py --draw results/benchmarks.csv
"""

import argparse
import csv
import math
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple, fields
from itertools import chain
from pathlib import Path

import cases
import processes
import timm
import torch
from cases import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

import unitary_layers

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.drawing import Curve, add_legend, draw_curves

FULL = (
    "linear",
    "compile",
    "rnn",
    "linear-rnn",
    "conv",
    "resnet9",
    "memory",
    "update",
)  # what heats the machine comes last
CASES = (*FULL, "copying", "distributed")
COLORS = dict.fromkeys(("dense", "factored", "local 3 x 3", "orthonormal 3 x 3"), "C7")  # of bars, by the paper's rule
COLORS |= {f"{name}, default": "C0" for name in COLORS}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", nargs="+", choices=CASES, default=FULL, help="cases to run")
    options.add_argument("--quick", action="store_true", help="small sizes, few repetitions, no peers")
    options.add_argument("--repetitions", type=int, default=15, help="turns of each case")
    options.add_argument("--threads", type=int, help="CPU threads; torch's own choice if not given")
    options.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="CSV and PNG go here")
    options.add_argument("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and time nothing")
    return options


def hardware() -> str:
    """Versions and machine, for the head of every table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return (
        f"unitary_layers {unitary_layers.__version__}, torch {torch.__version__}, timm {timm.__version__}, "
        f"Python {platform.python_version()}, {device}, {platform.machine()}, float32"
    )


def tables(only: Iterable[str], quick: bool, repetitions: int) -> Iterator[Iterator[Row]]:
    """The rows of every case, one size after another."""
    peers = {"with_peers": not quick}
    found = {
        "update": (
            *(cases.update(n, repetitions, **peers) for n in ((64, 128) if quick else (128, 256, 512, 1024, 2048))),
            *(() if quick else (cases.update(4096, repetitions, with_peers=False),)),
            *(cases.update(n, repetitions, torch.complex64) for n in ((64,) if quick else (512, 2048))),
            *(cases.many(4 if quick else 100, 64, repetitions, rule) for rule in (cases.PAPER, cases.DEFAULT)),
        ),
        "linear": [
            cases.linear(n, rows, repetitions, with_peers=not quick and n == 1024)
            for n, rows in (((64, 32),) if quick else ((512, 128), (2048, 128), (2048, 512), (4096, 128), (1024, 128)))
        ],
        "rnn": [
            cases.recurrent(width, math.ceil(repetitions / 3), steps)
            for width, steps in (((16, 20),) if quick else ((170, 784), (512, 784)))
        ],
        "linear-rnn": [
            cases.last_state(width, math.ceil(repetitions / 3), steps)
            for width, steps in (((16, 20),) if quick else ((128, 784), (256, 784), (512, 784)))
        ],
        "conv": [
            cases.convolution(c, s, math.ceil(repetitions / 2), **peers)
            for c, s in (((8, 4),) if quick else ((256, 8), (128, 16), (64, 32)))
        ],
        "compile": [cases.compiled(*((64, 32) if quick else (1024, 128)), repetitions)],
        "resnet9": [
            cases.network(2, 1, depths=(0, 0, 0), widths=(4, 4, 4), stem_width=4)
            if quick
            else cases.network(16, math.ceil(repetitions / 5))
        ],
        "distributed": [
            processes.distributed(n, rows, repetitions)
            for n, rows in (((64, 8),) if quick else ((1024, 128), (2048, 128), (4096, 128)))
        ],
        "copying": [cases.time_to_loss(*((5, 8, 2.0) if quick else (1000, 190, 2e-3)))],
        "memory": [cases.memory(*size) for size in (((64, 32),) if quick else ((1024, 128), (2048, 128)))],
    }
    return chain.from_iterable(found[case] for case in only)


def markdown(rows: list[Row]) -> str:
    lines = ["| case | size | by | ms | ratio | to |", "|---|---|---|---|---|---|"]
    for row in rows:
        time = "" if math.isnan(row.milliseconds) else f"{row.milliseconds:.3g}"
        lines.append(f"| {row.case} | {row.size} | {row.name} | {time} | {row.ratio:.2f} | {row.base} |")
    return "\n".join(lines)


def slopes(rows: list[Row]) -> Iterator[str]:
    """Growth of the update alone: log time over log n from n = 512 to 4096, and over log k from 1 to 16."""
    for name in ("projUNN k=1", "projUNN k=4", "projUNN k=16"):
        times = {int(r.size): r.milliseconds for r in rows if r.case == "update" and r.name == name}
        pairs = [(n, 8 * n) for n in sorted(times) if 8 * n in times]
        if pairs:
            small, large = pairs[-1]
            slope = math.log(times[large] / times[small]) / math.log(large / small)
            yield f"update alone, {name}: time grows as n^{slope:.2f} from n = {small} to {large}"
    times = {(int(r.size), r.name): r.milliseconds for r in rows if r.case == "update" and r.name.startswith("projUNN")}
    for n in sorted({n for n, _ in times}):
        slope = math.log(times[n, "projUNN k=16"] / times[n, "projUNN k=1"]) / math.log(16)
        yield f"update alone, n = {n}: time grows as k^{slope:.2f} from k = 1 to 16"


def write(rows: list[Row], head: str, folder: Path) -> None:
    """``benchmarks.csv`` and ``benchmarks.png`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "benchmarks.csv.part"
    with temporary.open("w", newline="") as file:
        file.write(f"# {head}\n")
        csv.writer(file).writerows([[field.name for field in fields(Row)], *map(astuple, rows)])
    os.replace(temporary, folder / "benchmarks.csv")
    draw(folder / "benchmarks.csv")


def read(path: Path) -> list[Row]:
    """The rows of a table."""
    with path.open(newline="") as file:
        lines = csv.DictReader(line for line in file if not line.startswith("#"))
        return [Row(**{**line, **{name: float(line[name]) for name in ("milliseconds", "ratio")}}) for line in lines]


def draw(path: Path) -> None:
    """PNG beside a table: training steps of ours over those of torch's layers, and the update alone against n."""
    rows = read(path)
    steps = [row for row in rows if row.case in ("linear", "rnn", "conv", "resnet9") and row.name in COLORS]
    updates = [row for row in rows if row.case == "update" and row.size.isdecimal()]
    figure = Figure(figsize=(14 if updates else 8, 1 + 0.24 * max(len(steps), 16)), layout="constrained")
    axes = figure.subplots(1, 2 if updates else 1, squeeze=False)[0]
    draw_steps(axes[0], steps)
    if updates:
        draw_updates(axes[1], updates)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def draw_steps(axes: Axes, rows: list[Row]) -> None:
    labels = [f"{row.case} {row.size}, {row.name}" for row in rows]
    bars = axes.barh(labels, [row.ratio for row in rows], color=[COLORS[row.name] for row in rows])
    axes.bar_label(bars, fmt="%.2f", label_type="center", color="white")
    axes.margins(y=0.01)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("time of a training step over that of torch's unconstrained layer and SGD")


def draw_updates(axes: Axes, rows: list[Row]) -> None:
    names = dict.fromkeys(row.name for row in rows)
    curves = [Curve(name, [(int(row.size), row.milliseconds) for row in rows if row.name == name]) for name in names]
    axes.set_xscale("log", base=2)
    draw_curves(axes, curves, log=True)
    axes.set(xlabel="n of a weight of n x n", ylabel="milliseconds of the update alone")
    add_legend(axes)


def main(arguments: list[str] | None = None) -> list[Row]:
    options = parser().parse_args(arguments)
    if options.draw is not None:
        draw(options.draw)
        return read(options.draw)
    if options.repetitions < 1:
        raise SystemExit(f"expected --repetitions of at least 1, got {options.repetitions}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows: list[Row] = []
    head = hardware()
    for table in tqdm(list(tables(options.only, options.quick, options.repetitions)), unit="table"):
        rows += table
        write(rows, head, options.out)
    print(head, markdown(rows), *slopes(rows), sep="\n")
    return rows


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # processors are slow at numbers that small, and no case is about them
    main()

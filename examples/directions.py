"""Does a factored gradient learn as well as a dense one? Three tasks, three seeds, the two side by side.

Both follow the paper's recipe (`--direction rmsprop`), not the default rule of the layers. "dense" is elementwise
RMSprop: the n x n gradient divided by the root of an n x n second moment. "factored" never has that matrix: its rows
and columns are divided by the roots of their second moments, which probes estimate (`UpdateRule(precondition=True,
direction="gradient")`). A step that is faster and learns worse would be no gain. The two take turns step by step, so
that their seconds can be compared on a machine that is shared. Copying memory at delays 100 and 1,000, and
scikit-learn's digits pixel by pixel; `--out` (runs/directions) gets directions.csv and directions.png.

    python examples/directions.py
    python examples/directions.py --tasks copying_1000 --steps 1000 --until-target
    python examples/directions.py --draw results/directions.csv
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import copying_memory
import pixel_sequence
import torch
from common.drawing import Curve, add_legend, draw_curves
from common.training import Trainer
from matplotlib.figure import Figure
from tqdm import tqdm

GRADIENTS = ("dense", "factored")
FIELDS = ("task", "seed", "gradient", "step", "loss", "seconds")


class Recipe(NamedTuple):
    """One task.

    Attributes:
        script: the example that sets it up.
        options: its command line; the recipe of `make demo`, at delay 1,000 that of README's results.
        target: a loss that is well below the baseline; steps and seconds to it are compared.
        every: steps that a point of the curves is the mean of.
    """

    script: ModuleType
    options: str
    target: float
    every: int


RECIPES = {
    "copying_100": Recipe(copying_memory, "--delay 100 --width 128 --steps 450 --lr 5e-3", 0.002, 10),
    "copying_1000": Recipe(copying_memory, "--delay 1000 --width 190 --steps 600 --schedule cosine", 0.002, 10),
    "digits": Recipe(pixel_sequence, "--images digits --width 128 --epochs 40", 0.5, 22),
}


def curves(name: str, seed: int, extra: list[str], until_target: bool = False) -> Iterator[dict[str, object]]:
    """Trains by both gradients in turns, if asked no longer than both need to the target; the rows of their curves."""
    recipe, ahead = RECIPES[name], set(GRADIENTS)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for gradient in GRADIENTS:
            fixed = f"--direction rmsprop --seed {seed} --gradient {gradient}"
            line = [*recipe.options.split(), *extra, *fixed.split()]
            args, task = recipe.script.setup([*line, "--out", f"{folder}/{gradient}"])
            if args.model != "unitary":
                raise ValueError(f"expected --model unitary, whose gradient can be factored, got {args.model!r}")
            trainers[gradient] = Trainer(args, task)
        losses: dict[str, list[float]] = {gradient: [] for gradient in GRADIENTS}
        steps = trainers["dense"].args.steps
        with tqdm(total=steps, desc=f"{name}, seed {seed}") as bar:
            for step in range(1, steps + 1):
                for gradient, trainer in trainers.items():
                    losses[gradient].append(trainer.train_step()[0])
                bar.update()
                if step % recipe.every and step < steps:
                    continue
                means = {gradient: statistics.fmean(values) for gradient, values in losses.items()}
                error = max(trainer.model.unitarity_error() for trainer in trainers.values())
                shown = {gradient: f"{mean:.2e}" for gradient, mean in means.items()}
                bar.set_postfix(shown | {"unitarity_error": f"{error:.0e}"})
                for gradient, trainer in trainers.items():
                    values = (name, seed, gradient, step, means[gradient], trainer.seconds)
                    yield dict(zip(FIELDS, values, strict=True))
                    losses[gradient].clear()
                ahead -= {gradient for gradient, mean in means.items() if until_target and mean <= recipe.target}
                if not ahead:
                    break


def reached(rows: list[dict], target: float) -> tuple[int, float] | None:
    """Step and seconds at which a curve falls to the target for the first time; None if it never does."""
    return next(((row["step"], row["seconds"]) for row in rows if row["loss"] <= target), None)


def table(rows: list[dict]) -> Iterator[str]:
    """A line for each task and seed: last loss, and the steps and seconds to the target by both."""
    yield "| task, target | seed | last loss, dense | factored | steps to target, dense | factored | ratio of seconds |"
    yield "|---|---|---|---|---|---|---|"
    for name, seed in dict.fromkeys((row["task"], row["seed"]) for row in rows):
        runs = [
            [row for row in rows if (row["task"], row["seed"], row["gradient"]) == (name, seed, gradient)]
            for gradient in GRADIENTS
        ]
        found = [reached(run, RECIPES[name].target) for run in runs]
        steps = ["not reached" if f is None else str(f[0]) for f in found]
        ratio = f"{found[1][1] / found[0][1]:.2f}" if all(found) else ""
        last = [f"{run[-1]['loss']:.2e}" for run in runs]
        yield f"| {name}, {RECIPES[name].target:g} | {seed} | {' | '.join([*last, *steps, ratio])} |"


def write(rows: list[dict], folder: Path) -> None:
    """`directions.csv` and `directions.png` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "directions.csv.part"
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows({**row, "loss": f"{row['loss']:.5g}", "seconds": f"{row['seconds']:.4g}"} for row in rows)
    os.replace(temporary, folder / "directions.csv")
    draw(folder / "directions.csv")


def read(path: Path) -> list[dict]:
    """The rows of a table."""
    kinds = {"seed": int, "step": int, "loss": float, "seconds": float}
    with path.open(newline="") as file:
        return [{name: kinds.get(name, str)(text) for name, text in row.items()} for row in csv.DictReader(file)]


def draw(path: Path) -> None:
    """PNG beside a table: the loss of each task, a line for each seed, of one colour for each gradient."""
    rows = read(path)
    names = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        curves, labels = [], set()
        for gradient, seed in dict.fromkeys((row["gradient"], row["seed"]) for row in rows if row["task"] == name):
            found = [r for r in rows if (r["task"], r["gradient"], r["seed"]) == (name, gradient, seed)]
            index = GRADIENTS.index(gradient)
            style = {"color": f"C{index}", "marker": "os"[index], "markersize": 4, "alpha": 0.7}
            label = None if gradient in labels else gradient
            curves.append(Curve(label, [(row["step"], row["loss"]) for row in found], style))
            labels.add(gradient)
        draw_curves(axes, curves, log=True)
        axes.set(xlabel="training step", ylabel="loss", title=name.replace("_", ", delay "))
        add_legend(axes)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="directions.py", description=__doc__.partition("\n")[0])
    options.add_argument("--tasks", nargs="+", choices=tuple(RECIPES), default=list(RECIPES))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--until-target", action="store_true", help="end a run when both have reached its target")
    options.add_argument("--threads", type=int, default=None, help="CPU threads; torch's own choice if not given")
    options.add_argument("--out", type=Path, default=Path("runs/directions"), help="folder of the results")
    options.add_argument("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and train nothing")
    args, extra = options.parse_known_args(argv)  # what is left goes to the task, as --steps 10
    if args.draw is not None:
        options.parse_args(argv)  # which refuses what would go to a task
        return draw(args.draw)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    rows: list[dict] = []
    for name in args.tasks:
        for seed in args.seeds:
            rows += curves(name, seed, extra, args.until_target)
            write(rows, args.out)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

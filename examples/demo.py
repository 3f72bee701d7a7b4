"""The whole package in a few minutes on two cores: `make demo`, or `python examples/demo.py`.

Two tasks, each with a `UnitaryRNN`, an `nn.RNN` and an `nn.LSTM` of the same width, on the same batches for the same
number of steps: copying memory over a delay of 100, and the digits of scikit-learn read one pixel a step. Beside each
`UnitaryRNN` stands the same one with its unitary weight frozen where it starts, so that what this weight learns can be
told from what its start gives; on digits there are two starts, Henaff's random rotations and the identity. Every run is
one that the example scripts can repeat; its command line is printed. `--out` (runs/demo) gets a folder for each run,
results.csv, curves.png; at the end the checkpoint of one `UnitaryRNN` a task is loaded into a fresh model and compared.
"""

from __future__ import annotations

import argparse
import csv
import re
import shlex
import time
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import copying_memory
import pixel_sequence
import torch
from common.checkpoint import load_checkpoint
from common.curves import draw_task
from common.log import Row
from common.training import Trainer, build_model
from matplotlib.figure import Figure

FORMATS = {  # the columns of the table, and how their values are printed
    "task": "{}",
    "model": "{}",
    "parameters": "{:,}",
    "learning_rate": "{:g}",
    "test_loss": "{:.3e}",
    "test_accuracy": "{:.3f}",
    "unitarity_error": "{:.1e}",
    "seconds": "{:.0f}",
}


class Recipe(NamedTuple):
    """One task of the demo.

    Attributes:
        script: the example that sets it up.
        options: its command line, common to all models.
        quick: what `--quick` adds to it.
        models: by their names the models and what each adds to the command line. The learning rate of nn.RNN and
            nn.LSTM is the one of 3e-4, 1e-3, 3e-3 and 1e-2 that gave the smallest loss with the same number of steps
            when it was chosen. That of UnitaryRNN was chosen with `--direction rmsprop`, and the frozen ones share it.
            The steps of the unitary weight have the length that is the layer's default.
    """

    script: ModuleType
    options: str
    quick: str
    models: dict[str, str]


RECIPES = (
    Recipe(
        copying_memory,
        "--delay 100 --width 128 --steps 450 --log-every 25",
        "--delay 10 --width 16 --steps 4",
        {
            "UnitaryRNN": "--model unitary --lr 5e-3",
            "UnitaryRNN, frozen": "--model unitary --lr 5e-3 --frozen",
            "nn.RNN": "--model rnn --lr 1e-3",
            "nn.LSTM": "--model lstm --lr 3e-3",
        },
    ),
    Recipe(
        pixel_sequence,
        "--images digits --width 128 --epochs 40",
        "--width 16 --steps 4",
        {
            "UnitaryRNN": "--model unitary --lr 3e-3",
            "UnitaryRNN, frozen": "--model unitary --lr 3e-3 --frozen",
            "UnitaryRNN from identity": "--model unitary --init identity --lr 3e-3",
            "UnitaryRNN from identity, frozen": "--model unitary --init identity --lr 3e-3 --frozen",
            "nn.RNN": "--model rnn --lr 3e-4",
            "nn.LSTM": "--model lstm --lr 1e-3",
        },
    ),
)


def runs(recipe: Recipe, demo: argparse.Namespace) -> dict[str, Trainer]:
    """Trains every model by one recipe; by their names."""
    trainers = {}
    for label, options in recipe.models.items():
        name = recipe.script.__name__
        line = f"{options} {recipe.options} {recipe.quick if demo.quick else ''}".strip()
        line += f" --seed {demo.seed} --threads {demo.threads}"
        print(f"\n{label}: python examples/{name}.py {line}", flush=True)
        out = demo.out / name / re.sub(r"\W+", "_", label).lower()
        args, task = recipe.script.setup([*shlex.split(line), "--out", str(out), "--overwrite"])
        trainers[label] = Trainer(args, task)
        trainers[label].run()
    return trainers


def result(label: str, trainer: Trainer) -> Row:
    """What one trained model is worth, on held-out sequences."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return {
        "task": trainer.task.title,
        "model": label,
        "parameters": parameters,
        "learning_rate": trainer.args.lr,
        **trainer.evaluate(),
        "unitarity_error": trainer.model.unitarity_error(),
        "seconds": trainer.seconds,
    }


def print_table(rows: list[Row]) -> None:
    """The results, one model a line."""
    texts = [[name.replace("_", " ") for name in FORMATS]]
    for row in rows:
        texts.append(["-" if row[name] is None else text.format(row[name]) for name, text in FORMATS.items()])
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for line in texts:
        cells = zip(FORMATS.values(), line, widths, strict=True)
        print("  ".join(text.ljust(width) if form == "{}" else text.rjust(width) for form, text, width in cells))


def draw(path: Path, tasks: list[dict[str, Trainer]]) -> None:
    """PNG with a line of curves for each task."""
    figure = Figure(figsize=(13, 4 * len(tasks)), layout="constrained")
    for axes, trainers in zip(figure.subplots(len(tasks), 2), tasks, strict=True):
        summary = next(iter(trainers.values())).summary
        draw_task(list(axes), {label: trainer.log.rows for label, trainer in trainers.items()}, **summary)
    figure.savefig(path, dpi=120)


@torch.no_grad()
def check_checkpoint(trainer: Trainer) -> None:
    """Load the checkpoint into a model with other weights and compare the outputs of the two on held-out sequences.

    Raises:
        RuntimeError: they differ in any bit.
    """
    inputs, _ = next(iter(trainer.task.test_batches()))
    fresh = build_model(argparse.Namespace(**(vars(trainer.args) | {"seed": trainer.args.seed + 1})), trainer.task)
    fresh.load_state_dict(load_checkpoint(trainer.checkpoint)["model"])
    expected, got = trainer.model(inputs), fresh(inputs)
    if not torch.equal(expected, got):
        error = (expected - got).abs().max().item()
        raise RuntimeError(f"{trainer.checkpoint}: expected the outputs of the trained model, off by {error}")
    print(f"{trainer.checkpoint} loaded into a fresh model: outputs bit-identical on {inputs.size(1)} sequences")


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="demo.py", description=__doc__.partition("\n")[0])
    options.add_argument("--seed", type=int, default=0, help="of the weights and the data")
    options.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results")
    # Matrices this small gain little from a second thread, and lose tenfold where its core is busy with something else.
    options.add_argument("--threads", type=int, default=1, help="CPU threads")
    options.add_argument("--quick", action="store_true", help="a few steps of each run only, to see that all works")
    demo = options.parse_args(argv)
    start = time.perf_counter()
    tasks = [runs(recipe, demo) for recipe in RECIPES]
    rows = [result(label, trainer) for trainers in tasks for label, trainer in trainers.items()]
    with (demo.out / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([FORMATS, *(row.values() for row in rows)])
    draw(demo.out / "curves.png", tasks)
    print()
    print_table(rows)
    print()
    unitary, *others = (next(iter(trainers.values())) for trainers in tasks)
    for trainer in (unitary, *others):
        check_checkpoint(trainer)
    row = rows[0]
    name, baseline = unitary.task.baseline_name, unitary.task.baseline
    print(f"{row['task']}: {row['model']} is at 1/{baseline / row['test_loss']:.3g} of the {name}, {baseline:.4g}")
    print(f"{time.perf_counter() - start:.0f} s in all; results.csv, curves.png and a folder a run in {demo.out}")


if __name__ == "__main__":
    main()

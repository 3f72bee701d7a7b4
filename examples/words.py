"""Words as unitary matrices: word problems of groups, brackets and agreement, beside an LSTM and a transformer.

`a5` and `s5`: say the product of the elements of a group so far, at lengths up to 1,000 after training at 64. The even
permutations of five things are the 60 rotations of an icosahedron, all 120 are rotations and reflections in four
dimensions; neither group is solvable, so that no network of fixed depth that reads all words at once is expected to
follow it. `brackets`: Dyck words of five kinds, tested at twice the depth and length of training. `agreement`: the
number of a verb, with up to five attractors after training with two (J.-P. Bernardy, S. Lappin, arXiv 2208.05719, has
the last two tasks for English and for other Dyck words). Each peer is as small as it can be with no fewer parameters.

    python examples/words.py --quick
    python examples/words.py
    python examples/words.py --tasks a5 --models words lstm --seeds 0
    python examples/words.py --draw results/words.csv

`--out` gets words.csv, a row a test, words.png, and a folder of each training, which `--resume` continues.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from common.drawing import Curve, add_legend, draw_curves
from common.log import describe
from common.options import number
from common.resumable import ResumableRun
from common.sentences import NOTHING, TASKS, Task
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from unitary_layers import UnitaryWordRNN, attach

MODELS = ("words", "lowrank", "lstm", "transformer")
FIELDS = ("task", "model", "seed", "width", "parameters", "steps", "rate", "kind", "places", "accuracy", "seconds")
EVERY = 50  # steps between two rows of a log


class Recipe(NamedTuple):
    """How the layers are trained on a task.

    Attributes:
        width: n, features of a state.
        steps: of a training.
        shares: of them that each length of the task has.
        tokens: in a step, whatever the length.
        init: how the words start.
        spread: of the weights that read a state.
    """

    width: int
    steps: int
    shares: tuple[float, ...]
    tokens: int = 4096
    init: str = "identity"
    spread: float = 0.1


RECIPES = {
    "a5": Recipe(12, 1600, (0.4, 0.15, 0.45), init="haar", spread=1.0),
    "s5": Recipe(16, 1600, (0.4, 0.15, 0.45), init="haar", spread=1.0),
    "brackets": Recipe(48, 500, (0.3, 0.7), 2048),
    "agreement": Recipe(48, 600, (1.0,), 2560),
}
RATES = {"words": 3e-3, "lowrank": 1e-2, "lstm": 1e-2, "transformer": 3e-3}


class Reader(nn.Module):
    """What is said after each word, read off the state there."""

    def __init__(self, states: nn.Module, width: int, classes: int, scale: float = 1.0) -> None:
        super().__init__()
        self.states, self.head, self.scale = states, nn.Linear(width, classes), scale

    def forward(self, words: Tensor) -> Tensor:
        """Scores ``(time, batch, classes)`` of words ``(time, batch)``."""
        return self.head(self.states(words) * self.scale)


class First(nn.Sequential):
    """Layers one after another, of which the last returns its states first."""

    def forward(self, words: Tensor) -> Tensor:
        return super().forward(words)[0]


class Transformer(nn.Module):
    """Two layers of causal attention over words with sinusoidal positions."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, words: Tensor) -> Tensor:
        width, places = self.embedding.embedding_dim, torch.arange(len(words)).unsqueeze(1)
        angles = places * torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
        positions = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).unsqueeze(1)
        mask = nn.Transformer.generate_square_subsequent_mask(len(words))
        return self.encoder(self.embedding(words) + positions, mask=mask, is_causal=True)


def make_model(kind: str, task: Task, width: int, recipe: Recipe) -> nn.Module:
    """A reader of one kind with states of this width."""
    if kind in ("words", "lowrank"):
        form = "full" if kind == "words" else "lowrank"
        layer = UnitaryWordRNN(task.words, width, task.padding, words=form, init=recipe.init)
        reader = Reader(First(layer), width, task.classes, scale=width**0.5)  # a state is of length 1
        nn.init.normal_(reader.head.weight, std=recipe.spread)
        return reader
    if kind == "lstm":
        return Reader(First(nn.Embedding(task.words, width), nn.LSTM(width, width)), width, task.classes)
    return Reader(Transformer(task.words, width), width, task.classes)


def count_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def width_of(kind: str, task: Task, recipe: Recipe) -> int:
    """The width of a model: that of the recipe, or of a peer the least of as many parameters as the layer has."""
    if kind in ("words", "lowrank"):
        return recipe.width
    least = count_of(make_model("words", task, recipe.width, recipe))
    return next(w for w in range(8, 10_000, 8) if count_of(make_model(kind, task, w, recipe)) >= least)


class WordRun(ResumableRun):
    """One training of one model on one task."""

    def __init__(self, args: argparse.Namespace, kind: str, task: Task, recipe: Recipe, rate: float) -> None:
        super().__init__(args)
        self.kind, self.task, self.recipe = kind, task, recipe
        torch.manual_seed(args.seed)
        self.model = make_model(kind, task, width_of(kind, task, recipe), recipe)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.0)
        if kind == "words":
            attach(self.model, self.optimizer)
        warm, steps = max(1, recipe.steps // 20), recipe.steps
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1, (step + 1) / warm) * (1 + math.cos(math.pi * step / steps)) / 2
        )
        self.open({"task": args.task, "kind": kind, "parameters": count_of(self.model)})

    def config(self) -> dict[str, Any]:
        return self.options_but() | self.recipe._asdict()

    def length(self) -> int:
        """Of the sentences of this step."""
        share, done = self.step / self.recipe.steps, 0.0
        for length, part in zip(self.task.lengths, self.recipe.shares, strict=True):
            done += part
            if share < done:
                return length
        return self.task.lengths[-1]

    def train(self) -> None:
        """Train to the end, from wherever the run stands."""
        losses, rights = [], []
        name = f"{self.args.task}, {self.kind}, seed {self.args.seed}"
        with tqdm(total=self.recipe.steps, initial=self.step, desc=name, mininterval=5) as bar:
            while self.step < self.recipe.steps:
                loss, right = self.train_step()
                losses.append(loss)
                rights.append(right)
                bar.update()
                if self.step % EVERY == 0 or self.step == self.recipe.steps:
                    row = {"step": self.step, "loss": mean(losses), "accuracy": mean(rights), "seconds": self.seconds}
                    self.log.append(row | {"learning_rate": self.scheduler.get_last_lr()[0]})
                    bar.set_postfix_str(describe(self.log.rows[-1]))
                    losses, rights = [], []
                    self.save()

    def train_step(self) -> tuple[float, float]:
        """One step; its loss and accuracy."""
        start, length = time.perf_counter(), self.length()
        sentences = self.task.training(length, self.recipe.tokens // length, self.args.seed * 1_000_003 + self.step)
        scores = self.model(sentences.words).flatten(0, 1)
        targets = sentences.targets.flatten()
        loss = nn.functional.cross_entropy(scores, targets, ignore_index=NOTHING)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.head.parameters() if self.kind == "words" else self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        self.seconds += time.perf_counter() - start
        asked = targets != NOTHING
        return loss.item(), (scores.argmax(-1) == targets)[asked].float().mean().item()

    @torch.no_grad()
    def accuracies(self, batch: int) -> Iterable[tuple[int, int, float]]:
        """Of each kind of place in a test: how many there are, and what part of them is said right."""
        self.model.eval()
        found = []
        for seed in range(batch // 32):
            sentences = self.task.test(32, 10**9 + seed)
            found.append((sentences, self.model(sentences.words).argmax(-1) == sentences.targets))
        for kind in self.task.tested:
            rights = torch.cat([right[(s.kinds == kind) & (s.targets != NOTHING)] for s, right in found])
            yield kind, len(rights), rights.float().mean().item()


def run_one(args: argparse.Namespace, name: str, kind: str, seed: int) -> list[dict[str, Any]]:
    """Trains and tests one model; its rows of the table."""
    rate, recipe = args.lr or RATES[kind], RECIPES[name]
    recipe = recipe._replace(steps=args.steps or recipe.steps, width=args.width or recipe.width)
    own = argparse.Namespace(task=name, model=kind, seed=seed, lr=rate, threads=args.threads, device="cpu")
    own.out, own.resume, own.overwrite = args.out / f"{name}_{kind}_{seed}", args.resume, args.overwrite
    run = WordRun(own, kind, TASKS[name], recipe, rate)
    run.train()
    common = {"task": name, "model": kind, "seed": seed, "parameters": count_of(run.model), "steps": recipe.steps}
    common |= {"width": run.model.head.in_features, "rate": rate, "seconds": round(run.seconds, 1)}
    return [
        common | {"kind": k, "places": places, "accuracy": round(accuracy, 6)}
        for k, places, accuracy in run.accuracies(args.sentences)
    ]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """A table as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def means(rows: list[dict[str, str]]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """The mean accuracy over the seeds by task and model, for each kind of place."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows:
        by_kind = found.setdefault((row["task"], row["model"]), {})
        by_kind.setdefault(int(row["kind"]), []).append(float(row["accuracy"]))
    return {key: [(kind, mean(values)) for kind, values in sorted(kinds.items())] for key, kinds in found.items()}


def draw(path: Path) -> None:
    """PNG beside a table: accuracy against the kind of place, a panel a task."""
    table = means(read(path))
    tasks = [name for name in TASKS if any(task == name for task, _ in table)]
    figure = Figure(figsize=(4 * len(tasks), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        curves = [Curve(model, points) for (task, model), points in table.items() if task == name]
        draw_curves(axes, curves)
        axes.set(ylim=(-0.02, 1.02), xlabel=TASKS[name].axis, ylabel="accuracy", title=name)
        if name in ("a5", "s5"):
            axes.set_xscale("log")
        add_legend(axes)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def parser() -> argparse.ArgumentParser:
    """Options: which trainings, and how long they are."""
    options = argparse.ArgumentParser(
        prog="words.py",
        description="Word problems, brackets and agreement with unitary words, an LSTM and a transformer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = options.add_argument
    add("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    add("--models", nargs="+", choices=MODELS, default=["words", "lstm", "transformer"])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--steps", type=int, help="of a training; those of the task if not given")
    add("--width", type=int, help="features of a state; those of the task if not given")
    add("--lr", type=number, help="learning rate of AdamW; that of the model if not given")
    add("--sentences", type=int, default=256, help="of a test")
    add("--threads", type=int, default=1, help="CPU threads; the matrices are small")
    add("--quick", action="store_true", help="ten steps, one seed and short tests, to see it run")
    add("--out", type=Path, default=Path("runs/words"), help="folder of the results")
    add("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and train nothing")
    add("--resume", action="store_true", help="continue the runs in --out, or start them")
    add("--overwrite", action="store_true", help="replace the runs in --out")
    return options


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.draw is not None:
        return draw(args.draw)
    if args.quick:
        args.seeds, args.steps, args.sentences, args.overwrite = [0], args.steps or 10, 32, not args.resume
    for name in ("steps", "width", "sentences", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    table, rows = args.out / "words.csv", []
    kept = read(args.out / "words.csv") if args.resume and (args.out / "words.csv").exists() else []
    for name in args.tasks:
        for kind in args.models:
            for seed in args.seeds:
                own = [row for row in kept if (row["task"], row["model"], row["seed"]) == (name, kind, str(seed))]
                rows += own or run_one(args, name, kind, seed)
                write(table, rows + [row for row in kept if row not in rows])
                draw(table)
    for (task, model), points in means(read(table)).items():
        shown = ", ".join(f"{TASKS[task].axis} {kind} {accuracy:.3f}" for kind, accuracy in points)
        print(f"{task:10s}{model:12s}{shown}")


if __name__ == "__main__":
    main()

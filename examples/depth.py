"""How deep can a plain network be? The same one, without skips and norms, of orthogonal and of ordinary convolutions.

Depths 10, 30, 100 and 300; three kinds: "orthogonal" (`orthoplain100_projunn`: local orthogonal convolutions and
GroupSort, starting at the identity, trained by projUNN), "conv" (`nn.Conv2d` as torch starts it, ReLU) and "conv_he"
(`nn.Conv2d` as He et al., ICCV 2015, start it, ReLU), trained by RMSprop. The picture shows test accuracy against depth
and, at the start of training, the norm of the gradient that arrives at each layer. The paper's figures on MNIST at
depth 100: projUNN-T 94.6 %, unconstrained 23.5 % (Kiani, Balestriero, LeCun, Lloyd, NeurIPS 2022, arXiv 2203.05483).

    python examples/depth.py --quick
    python examples/depth.py --images digits --epochs 10
    python examples/depth.py --images mnist --depths 100 --epochs 2
    python examples/depth.py --draw results/depth_digits.csv

Orthogonal weights move by the paper's recipe, which learns deep networks faster than the layers' default rule
(`--direction spectral`): test accuracy on digits at depth 30 after four epochs 85.3 % against 42.5 %, at depth 10 after
one 56.4 % against 74.4 %.

`--out` gets depth.csv, the gradient norms in depth_gradients.csv, and depth.png.
"""

from __future__ import annotations

import argparse
import copy
import csv
from pathlib import Path
from typing import Any

import timm
import torch
from common.drawing import Curve, add_legend, draw_curves
from common.image_data import SETS
from common.image_options import parse, training_parser
from common.image_training import ImageRun, make_loaders
from common.options import number
from common.ordinary import he_conv, ordinary_conv
from matplotlib.figure import Figure
from torch import Tensor, nn

from unitary_layers.models.blocks import ConvUnit

KINDS = ("orthogonal", "conv", "conv_he")
QUICK = {"images": "digits", "epochs": 1, "depths": [10, 30]}
GRADIENT_FIELDS = ("kind", "depth", "layer", "norm")
FIELDS = ("kind", "depth", "epochs", "test_accuracy", "test_loss", "unitarity_error", "seconds", "gradient_decay")


def split(depth: int) -> tuple[int, int, int]:
    """Blocks of the three stages of a network with `depth` convolutions: a stem, two transitions and the rest."""
    if depth < 3:
        raise ValueError(f"--depths must be at least 3 (a stem and two transitions), got {depth}")
    blocks = depth - 3
    return blocks - 2 * (blocks // 3), blocks // 3, blocks // 3


def make_model(kind: str, depth: int, **options: Any) -> nn.Module:
    """A plain network of one kind."""
    layers = {
        "orthogonal": {},
        "conv": {"conv_layer": ordinary_conv, "act_layer": "relu"},
        "conv_he": {"conv_layer": he_conv, "act_layer": "relu"},
    }
    return timm.create_model("orthoplain100_projunn", depths=split(depth), **layers[kind], **options)


def gradient_norms(model: nn.Module, inputs: Tensor, loss: Any) -> list[float]:
    """Norm of the loss's gradient at the output of each layer, from the first to the last."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, ConvUnit)]
    loss(model(inputs)).backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    return [output.grad.norm().item() for output in outputs]


def run_one(args: argparse.Namespace, kind: str, depth: int, loaders: tuple) -> tuple[dict[str, Any], list[float]]:
    """Train one network; its row of the table and its gradient norms at the start."""
    train, test, classes = loaders
    args = copy.copy(args)
    args.model, args.out = f"{kind}_{depth}", args.out / f"{kind}_{depth}"
    del args.depths, args.kinds, args.draw  # of the comparison, which may grow when it is resumed
    if kind != "orthogonal":
        args.opt, args.lr = "rmsprop", args.conv_lr
    torch.manual_seed(args.seed)
    model = make_model(kind, depth, num_classes=classes, in_chans=SETS[args.images].size[0])
    inputs, targets = next(iter(test))
    norms = gradient_norms(model, inputs, lambda outputs: nn.functional.cross_entropy(outputs, targets))
    rows = ImageRun(args, model, train, test, f"{args.images}, {kind}, depth {depth}").run()
    row = rows[-1] | {"kind": kind, "depth": depth, "epochs": args.epochs, "gradient_decay": norms[0] / norms[-1]}
    return {name: row[name] for name in FIELDS}, norms


def write(path: Path, fields: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """A table as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def gradients_of(path: Path) -> Path:
    """Where the gradient norms to a table of results are."""
    return path.with_name(f"{path.stem}_gradients.csv")


def draw(path: Path, title: str) -> None:
    """PNG beside a table: accuracy against depth, and gradient norm against layer for the deepest networks."""
    tables = []
    for source in (path, gradients_of(path)):
        with source.open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    rows, norms = tables
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    accuracies, gradients = [], []
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        accuracies.append(Curve(kind, [(int(row["depth"]), float(row["test_accuracy"])) for row in own]))
        deepest = str(max((int(row["depth"]) for row in own), default=0))
        shown = [row for row in norms if (row["kind"], row["depth"]) == (kind, deepest)]
        points = [(int(row["layer"]), float(row["norm"])) for row in shown]
        gradients.append(Curve(f"{kind}, depth {deepest}", points))
    draw_curves(left, accuracies)
    draw_curves(right, gradients, log=True)
    left.set(xscale="log", ylim=(0, 1), xlabel="convolutions", ylabel="test accuracy", title=title)
    right.set(xlabel="layer", ylabel="norm of the gradient", title="at the start of training")
    add_legend(left)
    add_legend(right)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def parser() -> argparse.ArgumentParser:
    """Options: those of training, and which networks."""
    options = training_parser("Compare plain networks of orthogonal and of ordinary convolutions at several depths.")
    options.add_argument("--depths", type=int, nargs="+", default=[10, 30, 100, 300], help="numbers of convolutions")
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options.add_argument("--conv-lr", type=number, default=1e-3, help="learning rate of the ordinary networks")
    options.add_argument("--out", type=Path, default=Path("runs/depth"), help="folder of the results")
    options.add_argument("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and train nothing")
    defaults = {"images": "digits", "epochs": 10, "batch_size": 64, "lr": 1e-2}
    options.set_defaults(**defaults)
    return options


def main(argv: list[str] | None = None) -> None:
    args = parse(parser(), argv, QUICK, unitary_lr_scale=0.03, direction="rmsprop")
    if args.draw is not None:
        return draw(args.draw, args.images)
    for depth in args.depths:
        split(depth)
    loaders = make_loaders(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    rows, gradients = [], []
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "depth.csv"
    for depth in args.depths:
        for kind in args.kinds:
            row, norms = run_one(args, kind, depth, loaders)
            rows.append(row)
            values = ((kind, depth, layer, f"{norm:.6g}") for layer, norm in enumerate(norms, start=1))
            gradients += [dict(zip(GRADIENT_FIELDS, value, strict=True)) for value in values]
            write(table, FIELDS, rows)
            write(gradients_of(table), GRADIENT_FIELDS, gradients)
            draw(table, args.images)
    for row in rows:
        print(f"{row['kind']:10s} depth {row['depth']:3d}: test accuracy {row['test_accuracy']:.3f}", flush=True)


if __name__ == "__main__":
    main()

"""How far may an image move before a network may change its mind? A certified network beside an unconstrained one.

The certified network is 1-Lipschitz up to a linear head, so its margin is a proof: no change of the image below
`min_j (z_y - z_j) / |w_y - w_j|` in the Euclidean norm changes the prediction, up to rounding (Tsuzuku, Sato, Sugiyama,
NeurIPS 2018, arXiv 1802.04034; with orthogonal convolutions Li et al., NeurIPS 2019, arXiv 1911.00937). `--network
plain` is timm's orthoplain100 with local orthogonal convolutions and GroupSort in a smaller layout; `--network shift`
has orthogonal matrices over the channels, shifts of channels and absolute values, after LipNeXt (arXiv 2601.18513), and
moves its training images by up to an eighth of a side, if `--shift` does not say how far.

What is proved is a lower bound of the true accuracy at a radius. Beside it stand two upper bounds: what an attack by
projected gradients leaves (Madry et al., ICLR 2018, arXiv 1706.06083), and the distance of a change of the prediction
that was found along the gradient (Brau et al., arXiv 2201.01235). Of the unconstrained network, plain with `nn.Conv2d`
and ReLU, only these are known. Radii are in pixels between 0 and 1, which are therefore not standardised.

    python examples/certified.py --quick
    python examples/certified.py --images fashion
    python examples/certified.py --images cifar10 --network shift
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from common.drawing import Curve, add_legend, draw_curves
from common.image_data import SETS
from common.image_memory import memory_loaders
from common.image_options import parse, training_parser
from common.image_training import ImageRun, make_loaders
from common.options import number
from common.ordinary import he_conv
from common.shift_network import ShiftNetwork
from matplotlib.figure import Figure
from torch import Tensor, nn

from unitary_layers import UpdateRule
from unitary_layers.robust import LogitAnnealingLoss, boundary_distance, certified_radius

RADII = (36 / 255, 72 / 255, 108 / 255)
KINDS = ("certified", "unconstrained")
NETWORKS = ("plain", "shift")
FIELDS = ("model", "radius", "clean", "certified", "attacked", "bounded")
EVALUATION = ("attacked", "attack_steps", "kinds", "radii")  # options that a resumed run may change
LAYOUT = {"depths": (2, 2), "widths": (16, 64), "stem_width": 16, "stem_stride": 2}
QUICK = {"images": "digits", "epochs": 5}


def project(change: Tensor, radius: float) -> Tensor:
    """The nearest changes ``(b, ...)`` of norm `radius` or less."""
    norms = change.flatten(1).norm(dim=1).view(-1, *[1] * (change.dim() - 1))
    return change * (radius / norms).clamp(max=1)


def pgd_attack(
    model: nn.Module, inputs: Tensor, targets: Tensor, radius: float, steps: int, generator: torch.Generator
) -> Tensor:
    """Images ``(b, c, h, w)`` in [0, 1] within a radius of the inputs, where gradient ascent finds a larger loss.

    Starts at random, takes steps of 2.5 radius / steps along the gradient and projects after each (Madry et al., 2018).
    """
    start = torch.randn(inputs.shape, generator=generator).to(inputs)
    images = (inputs + project(start, radius)).clamp(0, 1)
    for _ in range(steps):
        images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), targets, reduction="sum"), images)
        norms = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
        step = gradient / norms[:, None, None, None] * (2.5 * radius / steps)
        images = (inputs + project(images.detach() + step - inputs, radius)).clamp(0, 1)
    return images


def make_model(kind: str, **options: Any) -> nn.Module:
    """The plain certified network, or the unconstrained one of the same layout."""
    layers = {} if kind == "certified" else {"conv_layer": he_conv, "act_layer": "relu"}
    return timm.create_model("orthoplain100_projunn", **LAYOUT, **layers, **options)


def network_of(args: argparse.Namespace, kind: str, classes: int) -> nn.Module:
    """The network that the options name."""
    size = SETS[args.images].size
    if args.network == "shift" and kind == "certified":
        update = UpdateRule(rank="auto" if args.rank is None else args.rank, lr=args.unitary_lr)
        return ShiftNetwork(classes, size, args.patch, args.widths, args.depths, args.pool, args.init, update)
    return make_model(kind, num_classes=classes, in_chans=size[0])


def train(args: argparse.Namespace, kind: str, loaders: tuple) -> nn.Module:
    """One trained network."""
    train_loader, test_loader, classes = loaders
    args = copy.copy(args)
    args.model, args.out = kind, args.out / kind
    for name in EVALUATION:
        delattr(args, name)
    if kind == "unconstrained":
        args.opt, args.lr = "rmsprop", args.conv_lr
    torch.manual_seed(args.seed)
    run = ImageRun(args, network_of(args, kind, classes), train_loader, test_loader, f"{args.images}, {kind}")
    if kind == "certified":
        head = run.model.get_classifier()
        run.loss = LogitAnnealingLoss(args.offset, args.temperature, args.annealing, head=head)
    run.run()
    return run.evaluated().eval()


def radii_of(model: nn.Module, loader: Any, device: str) -> tuple[Tensor, Tensor]:
    """Whether each test image is right, and its certified radius: 0 where the features have no known constant."""
    head, right, radii = model.get_classifier(), [], []
    for inputs, targets in loader:
        inputs, targets = inputs.to(device), targets.to(device)
        with torch.no_grad():
            logits = model(inputs)
            right.append(logits.argmax(dim=1) == targets)
            # the pooling of the plain network, a maximum, and those of the other have the constant 1
            radii.append(certified_radius(logits, head, model.lipschitz, targets))
    return torch.cat(right), torch.cat(radii)


def first_images(args: argparse.Namespace, loader: Any) -> tuple[Tensor, Tensor]:
    """The first `--attacked` test images and their classes."""
    inputs, targets = zip(*itertools.islice(loader, -(-args.attacked // args.batch_size)), strict=True)
    return torch.cat(inputs)[: args.attacked].to(args.device), torch.cat(targets)[: args.attacked].to(args.device)


def upper_bounds(args: argparse.Namespace, model: nn.Module, loader: Any) -> dict[float, dict[str, float]]:
    """Of the first test images, at each radius: the share that stays right under attack, and of those whose nearest
    known change of the prediction is further away."""
    generator, right, attacked = torch.Generator().manual_seed(args.seed), [], {radius: [] for radius in args.radii}
    model.requires_grad_(False)
    inputs, targets = first_images(args, loader)
    for x, y in zip(inputs.split(args.batch_size), targets.split(args.batch_size), strict=True):
        distances = boundary_distance(model, x)
        right.append(distances.where(model(x).argmax(dim=1) == y, 0.0))
        for radius in args.radii:
            images = pgd_attack(model, x, y, radius, args.attack_steps, generator)
            attacked[radius].append(model(images).argmax(dim=1) == y)
    distances = torch.cat(right)
    return {
        radius: {
            "attacked": torch.cat(attacked[radius]).double().mean().item(),
            "bounded": (distances > radius).double().mean().item(),
        }
        for radius in args.radii
    }


def evaluate(args: argparse.Namespace, kind: str, model: nn.Module, loader: Any) -> tuple[list[dict[str, Any]], Tensor]:
    """The rows of one network, and the certified radii of the test images."""
    right, radii = radii_of(model, loader, args.device)
    clean, rows, above = right.double().mean().item(), [], upper_bounds(args, model, loader)
    for radius in args.radii:
        certified = (radii > radius).double().mean().item()
        rows.append({"model": kind, "radius": radius, "clean": clean, "certified": certified, **above[radius]})
        values = ", ".join(f"{name} {rows[-1][name]:.3f}" for name in FIELDS[2:])
        print(f"{kind}, radius {radius:.4g}: {values}", flush=True)
    return rows, radii


def draw(path: Path, title: str, rows: list[dict[str, Any]], radii: dict[str, Tensor]) -> None:
    """Accuracy against radius: what is proved as lines, what withstands the attack as points."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    grid = torch.linspace(0, 1.5 * max(row["radius"] for row in rows), 100, dtype=torch.float64)
    curves = []
    for color, kind in zip(("C0", "C1"), radii, strict=False):
        chosen = [row for row in rows if row["model"] == kind]
        points = [(0.0, chosen[0]["clean"]), *((row["radius"], row["attacked"]) for row in chosen)]
        curves.append(Curve(f"{kind}, attacked", points, {"color": color, "linestyle": "--"}))
        if bool((radii[kind] > 0).any()):
            share = (radii[kind][:, None] > grid).double().mean(dim=0)
            points = zip(grid.tolist(), share.tolist(), strict=True)
            curves.append(Curve(f"{kind}, proved", points, {"color": color}))
    draw_curves(axes, curves)
    axes.set(ylim=(0, 1), xlabel="radius (Euclidean, pixels in [0, 1])", ylabel="accuracy", title=title)
    add_legend(axes)
    figure.savefig(path, dpi=120)


def parser() -> argparse.ArgumentParser:
    """Options: those of training, the loss and the attack."""
    options = training_parser("Certified accuracy of a 1-Lipschitz network beside an unconstrained one under attack.")
    add = options.add_argument
    add("--network", choices=NETWORKS, default="plain", help="the certified network")
    add("--patch", type=int, default=4, help="shift: pixels of a side that become channels")
    add("--widths", type=int, nargs="+", default=(128, 256), help="shift: channels of each stage")
    add("--depths", type=int, nargs="+", default=(3, 4), help="shift: blocks of each stage")
    add("--pool", choices=("flat", "norm"), default="flat", help="shift: what the head sees")
    add("--init", choices=("identity", "haar"), default="haar", help="shift: start of the matrices")
    add("--rank", type=int, help="shift: rank of an update of a matrix; the layer's own if not given")
    add("--unitary-lr", type=number, help="shift: length of an update in radians; the layer's own if not given")
    add("--offset", type=number, default=0.0, help="of the loss of the certified network, a distance")
    add("--temperature", type=number, default=0.1, help="of that loss, a distance")
    add("--annealing", type=number, default=0.0, help="of that loss: its power")
    add("--kinds", choices=KINDS, nargs="+", default=KINDS, help="networks to train")
    add("--conv-lr", type=number, default=1e-3, help="learning rate of the unconstrained network")
    add("--radii", type=number, nargs="+", default=RADII, help="Euclidean, of pixels in [0, 1]; such as 36/255")
    add("--attacked", type=int, default=1000, help="test images that are attacked")
    add("--attack-steps", type=int, default=20, help="steps of the attack")
    add("--out", type=Path, default=Path("runs/certified"), help="folder of the results")
    defaults = {"images": "fashion", "epochs": 5, "batch_size": 64, "lr": 1e-2}
    options.set_defaults(**defaults)
    return options


def main(argv: list[str] | None = None) -> None:
    args = parse(parser(), argv, QUICK, unitary_lr_scale=0.03)
    for name in ("attacked", "attack_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if min(args.radii) <= 0:
        raise ValueError(f"--radii must be positive, got {args.radii}")
    for name in ("mixup", "smoothing"):
        if getattr(args, name):
            raise ValueError(f"--{name} does not fit the certified network and its loss of margins")
    for name in ("rank", "unitary_lr"):
        if getattr(args, name) is not None and (args.network, args.direction) != ("shift", "spectral"):
            raise ValueError(f"--{name.replace('_', '-')} needs --network shift and --direction spectral")
    if args.network == "shift" and args.shift is None:
        args.shift = SETS[args.images].size[-1] // 8
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    loaders = memory_loaders(args) if args.network == "shift" else make_loaders(args, standardise=False)
    rows, radii = [], {}
    for kind in args.kinds:
        model = train(args, kind, loaders)
        found, radii[kind] = evaluate(args, kind, model, loaders[1])
        rows += found
        with (args.out / "certified.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    draw(args.out / "certified.png", args.images, rows, radii)


if __name__ == "__main__":
    main()

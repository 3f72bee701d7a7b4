"""How far can an image be pushed before a network changes its mind? A network with a guarantee, and one without.

"certified" is an OrthoResNet whose features are 1-Lipschitz (local orthogonal convolutions and GroupSort, trained by
projUNN), "unconstrained" the same layout of `nn.Conv2d`, batch norm and ReLU, trained by RMSprop. A margin of the
logits divided by the Lipschitz constant of their difference is a distance within which nothing changes the prediction
(Tsuzuku, Sato, Sugiyama, NeurIPS 2018, arXiv 1802.04034; for orthogonal convolutions: Li et al., NeurIPS 2019,
arXiv 1911.00937). Training asks for a margin (as in Prach, Lampert, ECCV 2022, arXiv 2208.03160). Both are attacked by
projected gradient descent in L2 (Madry et al., ICLR 2018, arXiv 1706.06083), which bounds robust accuracy from above.
Radii are in pixels of [0, 1], which is what the networks are shown: mean 0, standard deviation 1.

    python examples/certified.py --quick
    python examples/certified.py --images fashion
    python examples/certified.py --images cifar10 --epochs 40 --model-kwargs stem_width=16 "widths=(64,256)"
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import train_image
from depth import ordinary_conv
from image_data import SETS
from image_training import ImageRun, make_loaders
from matplotlib.figure import Figure
from options import number
from torch import Tensor, nn

KINDS = ("certified", "unconstrained")
RADII = (36 / 255, 72 / 255, 108 / 255)
FIELDS = ("model", "radius", "clean", "certified", "attacked", "attacked_images", "broken")
LAYOUT = {"depths": (2, 2), "widths": (16, 64), "stem_width": 16, "stem_stride": 2, "global_pool": "max"}
QUICK = {"images": "digits", "epochs": 10, "attacked": 360}


def make_model(kind: str, **options: Any) -> nn.Module:
    """A network of one kind."""
    layers = {
        "certified": {"block": "isometry", "init": "identity"},
        "unconstrained": {"block": "isometry", "conv_layer": ordinary_conv, "act_layer": "relu"},
    }
    layers["unconstrained"]["norm_layer"] = "batchnorm2d"
    return timm.create_model("orthoresnet18_projunn", **(LAYOUT | layers[kind] | options))


def pool_lipschitz(pool: str, height: int, width: int) -> float:
    """Lipschitz constant in L2 of pooling all positions: "avg" (the mean of h w numbers) or "max"."""
    known = {"avg": 1 / math.sqrt(height * width), "max": 1.0}
    if pool not in known:
        raise ValueError(f"expected pooling whose Lipschitz constant is known, {tuple(known)}, got {pool!r}")
    return known[pool]


def lipschitz_of(model: nn.Module, size: tuple[int, int]) -> float:
    """Lipschitz constant of an OrthoResNet up to its last layer, for images of a size."""
    if not math.isfinite(model.lipschitz):
        raise ValueError("expected a network of known Lipschitz constant: block isometry or convex, GroupSort, no norm")
    reduction = model.feature_info[-1]["reduction"]
    return model.lipschitz * pool_lipschitz(model.head.global_pool.pool_type, *(side // reduction for side in size))


def margins(logits: Tensor, targets: Tensor, weight: Tensor, lipschitz: float) -> Tensor:
    """``(z_y - z_j) / (lipschitz |W_y - W_j|)`` of logits ``(b, classes)``; 0 in the column of the target y."""
    same = torch.eye(len(weight), device=weight.device, dtype=weight.dtype)
    distances = ((weight[:, None] - weight[None]).square().sum(2) + same).sqrt()
    gaps = logits.gather(1, targets[:, None]) - logits
    return gaps / (lipschitz * distances[targets])


def certified_radii(logits: Tensor, targets: Tensor, weight: Tensor, lipschitz: float) -> Tensor:
    """L2 distance within which the prediction cannot change; 0 where it is wrong.

    Args:
        logits: ``(b, classes)``.
        targets: ``(b,)``, the right classes.
        weight: ``(classes, features)`` of the last layer, which is linear.
        lipschitz: constant of all before it.
    """
    others = margins(logits, targets, weight, lipschitz).nan_to_num(0.0, posinf=math.inf)  # 0 / 0: a tie
    return others.scatter(1, targets[:, None], math.inf).amin(1).clamp(min=0)


def margin_loss(logits: Tensor, targets: Tensor, *, weight: Tensor, lipschitz: float, args: Any) -> Tensor:
    """Cross entropy of the margins, less a radius that each should exceed, over a temperature."""
    scores = (args.offset - margins(logits, targets, weight, lipschitz)) / args.temperature
    return F.cross_entropy(scores.scatter(1, targets[:, None], 0.0), targets, label_smoothing=args.smoothing)


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (x.ndim - 1))


def pgd_attack(
    model: nn.Module, inputs: Tensor, targets: Tensor, radius: float, steps: int, generator: torch.Generator
) -> Tensor:
    """Images ``(b, c, h, w)`` in [0, 1] within L2 distance `radius` of `inputs`, by gradient ascent on the loss.

    It starts at random in the ball, takes steps of ``2.5 radius / steps`` and leaves an image once it is misclassified.
    """
    noise = torch.randn(inputs.shape, generator=generator).to(inputs)
    length = torch.rand(len(inputs), *[1] * (inputs.ndim - 1), generator=generator).to(inputs)
    x = (inputs + radius * length * noise / _norms(noise)).clamp(0, 1)
    for _ in range(steps):
        x = x.requires_grad_()
        with torch.enable_grad():
            logits = model(x)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, targets, reduction="sum"), x)
        standing = (logits.argmax(1) == targets).view(-1, *[1] * (x.ndim - 1))
        change = x.detach() + 2.5 * radius / steps * gradient / _norms(gradient) - inputs
        inside = (inputs + change * (radius / _norms(change)).clamp(max=1)).clamp(0, 1)
        x = torch.where(standing, inside, x.detach())
    return x


@torch.no_grad()
def classify(model: nn.Module, loader: Any, device: str, lipschitz: float | None) -> tuple[Tensor, Tensor | None]:
    """Of each test image whether it is classified right, and its certified radius where there is a constant."""
    right, radii = [], []
    for inputs, targets in loader:
        logits, targets = model(inputs.to(device)), targets.to(device)
        right.append(logits.argmax(1) == targets)
        if lipschitz is not None:
            radii.append(certified_radii(logits, targets, model.head.fc.weight, lipschitz))
    return torch.cat(right), torch.cat(radii) if radii else None


@torch.no_grad()
def withstood(model: nn.Module, loader: Any, radius: float, args: argparse.Namespace) -> Tensor:
    """Of each of the first `args.attacked` test images whether it is classified right under attack."""
    generator, right, left = torch.Generator().manual_seed(args.seed), [], args.attacked
    for inputs, targets in loader:
        inputs, targets = inputs[:left].to(args.device), targets[:left].to(args.device)
        x = pgd_attack(model, inputs, targets, radius, args.attack_steps, generator)
        right.append((model(x) == model(x).amax(1, keepdim=True)).gather(1, targets[:, None])[:, 0])
        left -= len(targets)
        if left <= 0:
            break
    return torch.cat(right)


def run_one(args: argparse.Namespace, kind: str, loaders: tuple) -> tuple[list[dict[str, Any]], Tensor | None]:
    """Train and attack one network; its rows of the table and its certified radii."""
    train, test, classes = loaders
    args = copy.copy(args)
    args.model, args.out = kind, args.out / kind
    if kind != "certified":
        args.opt, args.lr = "rmsprop", args.conv_lr
    torch.manual_seed(args.seed)
    channels, *size = SETS[args.images].size
    size = size if args.img_size is None else (args.img_size, args.img_size)
    model = make_model(kind, **({"num_classes": classes, "in_chans": channels} | args.model_kwargs))
    lipschitz = lipschitz_of(model, size) if kind == "certified" else None
    run = ImageRun(args, model, train, test, f"{args.images}, {kind}")
    if lipschitz is not None:
        run.loss = partial(margin_loss, weight=run.model.head.fc.weight, lipschitz=lipschitz, args=args)
    run.run()
    model = run.evaluated().eval().requires_grad_(False)
    right, radii = classify(model, test, args.device, lipschitz)
    rows = []
    for radius in RADII:
        stood = withstood(model, test, radius, args)
        row = {"model": kind, "radius": radius, "clean": right.float().mean().item()}
        row |= {"attacked": stood.float().mean().item(), "attacked_images": len(stood)}
        if radii is not None:
            certified = radii > radius
            row |= {
                "certified": certified.float().mean().item(),
                "broken": int((certified[: len(stood)] & ~stood).sum()),
            }
        rows.append(row)
    return rows, radii


def draw(path: Path, title: str, rows: list[dict[str, Any]], radii: Tensor | None) -> None:
    """Accuracy against radius: certified (solid) and under attack (dashed)."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for color, kind in zip(("C0", "C1"), KINDS, strict=True):
        own = [row for row in rows if row["model"] == kind]
        if not own:
            continue
        points = [(0.0, own[0]["clean"]), *((row["radius"], row["attacked"]) for row in own)]
        axes.plot(*zip(*points, strict=True), f"{color}o--", label=f"{kind}, under attack")
        if kind == "certified" and radii is not None:
            grid = torch.linspace(0, 1.5 * RADII[-1], 200)
            share = (radii.cpu()[None] > grid[:, None]).float().mean(1)
            axes.plot(grid.tolist(), share.tolist(), color, label="certified")
    axes.set(ylim=(0, 1), xlabel="L2 radius, pixels in [0, 1]", ylabel="test accuracy", title=title)
    axes.legend()
    figure.savefig(path, dpi=120)


def parser() -> argparse.ArgumentParser:
    """Options: those of train_image, the margin and the attack."""
    options = train_image.parser()
    options.description = "Compare a network of certified robustness with an unconstrained one."
    add = options.add_argument
    add("--offset", type=number, default=0.5, help="radius that training asks for")
    add("--temperature", type=number, default=0.1, help="of the margins in the loss")
    add("--conv-lr", type=number, default=1e-3, help="learning rate of the unconstrained network")
    add("--attacked", type=int, default=1000, help="test images to attack")
    add("--attack-steps", type=int, default=20)
    defaults = {"images": "fashion", "epochs": 8, "batch_size": 128, "lr": 1e-2, "unitary_lr_scale": 0.03}
    options.set_defaults(**defaults, out=Path("runs/certified"))
    return options


def main(argv: list[str] | None = None) -> None:
    options = parser()
    if options.parse_args(argv).quick:
        options.set_defaults(**QUICK)
    args = options.parse_args(argv)
    if args.attacked < 1 or args.attack_steps < 1 or not args.temperature > 0 or args.mixup:
        raise ValueError("--attacked and --attack-steps must be at least 1, --temperature positive, --mixup 0")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    channels = SETS[args.images].size[0]
    loaders = make_loaders(args, dataclasses.replace(SETS[args.images], mean=(0.0,) * channels, std=(1.0,) * channels))
    rows, radii = [], {}
    args.out.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        own, radii[kind] = run_one(args, kind, loaders)
        rows += own
        with (args.out / "certified.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        draw(args.out / "certified.png", args.images, rows, radii["certified"])
    for row in rows:
        bound = f", certified {row['certified']:.3f}, broken {row['broken']}" if "certified" in row else ""
        accuracies = f"accuracy {row['clean']:.3f}, under attack {row['attacked']:.3f}{bound}"
        print(f"{row['model']:13s} radius {255 * row['radius']:3.0f}/255: {accuracies}", flush=True)


if __name__ == "__main__":
    main()

"""Images read one pixel a step by `unissm_pixel_projunn`: unitary state space layers with gated units, two if not told.

The unitary weights move by their rule, attached to AdamW, which moves all others; the rates rise over the first steps
and fall to zero by a cosine. Phases and decays take a tenth of the rate: over hundreds of steps a small change of an
angle turns a state far. `--basis` compares what the unitary weights do: learnt, random and frozen, or none at all (the
identity). `--shift` moves each training image by up to so many pixels in both directions, and `--flip` mirrors half
of them at random, before their pixels are permuted. The pixels of CIFAR-10 have three numbers each.

    python examples/pixel_ssm.py --quick
    python examples/pixel_ssm.py --permute --shift 1 --epochs 9 --out runs/pixel_ssm/learnt
    python examples/pixel_ssm.py --permute --shift 1 --epochs 9 --basis frozen --out runs/pixel_ssm/frozen
    python examples/pixel_ssm.py --images cifar10 --shift 4 --flip --widths 64 192 256 --blocks 2 2 1 --pool avg
    python examples/report.py runs/pixel_ssm
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import timm
import torch
from common.curves import draw_runs
from common.images import ALL_SETS, load_images
from common.log import Row
from common.options import number, parsed
from common.pixels import Pixels, PixelsRun, moved
from common.tasks import PERMUTATION_SEED
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import unitary_layers  # registers the model

BASES = ("learnt", "frozen", "none")
QUICK = {"images": "digits", "epochs": 3, "widths": (16, 16)}


class OrderedPixels(Pixels):
    """Images whose pixels come in one fixed order.

    Args:
        source: as `load_images` gives it.
        permute: a random order in the place of rows one after another.
        shift: pixels by which a training image is moved at most, before its pixels are put in order.
        flip: whether training images are mirrored at random.

    Attributes:
        order: where each pixel comes from.
        blank: the value of a pixel that is moved in.
    """

    def __init__(self, source: dict[str, Any], permute: bool, shift: int = 0, flip: bool = False) -> None:
        super().__init__(source)
        count = self.train[0][0, 0].numel()
        self.order = torch.arange(count)
        if permute:
            self.order = torch.randperm(count, generator=torch.Generator().manual_seed(PERMUTATION_SEED))
        self.shift, self.flip, self.blank = shift, flip, float(self.train[0].min())

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = super().batch(index, generator)
        if self.flip:
            is_mirrored = torch.rand(len(index), generator=generator) < 0.5
            images = torch.where(is_mirrored[:, None, None, None], images.flip(3), images)
        if self.shift:
            places = torch.randint(2 * self.shift + 1, (2, len(index)), generator=generator).T
            images = moved(images, places, self.shift, self.blank)
        return self.shown(images), labels

    def shown(self, images: Tensor) -> Tensor:
        """Images `(count, c, h, w)` with their pixels in the order of this task."""
        return images.flatten(2)[..., self.order].view_as(images)


class PixelRun(PixelsRun):
    """One run: a model, its optimiser and its images."""

    clip = 1.0

    def __init__(self, args: argparse.Namespace) -> None:
        data = OrderedPixels(load_images(args.images, args.root), args.permute, args.shift, args.flip)
        super().__init__(args, data)
        torch.manual_seed(args.seed)
        self.model = make_model(args, data.train[0].size(1))
        self.optimizer = make_optimizer(args, self.model)
        steps = self.per_epoch * args.epochs
        self.scheduler = LambdaLR(self.optimizer, lambda step: rate(step, min(200, steps // 10), steps))
        order = "permuted" if args.permute else "in order"
        self.title = f"{args.images}, {len(data.order)} pixels, {order}"
        self.open({"title": self.title, "baseline": math.log(10), "baseline_name": "guessing"}, timm=timm.__version__)

    def config(self) -> dict[str, Any]:
        return self.options_but("root", "quick")

    def unitarity_error(self) -> float:
        return float(unitary_layers.unitarity_error_of(self.model))

    def run(self) -> list[Row]:
        """Train to the last epoch, write the model and draw the curves; returns the rows of the log."""
        super().run()
        save_model(self.model, str(self.args.out / "model.safetensors"))
        draw_runs(self.args.out / "curves.png", {self.args.basis: self.log.rows}, **self.summary)
        return self.log.rows


def make_model(args: argparse.Namespace, channels: int) -> nn.Module:
    """The model that the options name."""
    blocks = args.blocks or (2, *[1] * (len(args.widths) - 1))
    return timm.create_model(
        "unissm_pixel_projunn",
        widths=args.widths,
        block_sizes=blocks,
        embed_dim=channels,
        in_chans=channels,
        global_pool=args.pool,
        drop_rate=args.dropout,
        init="identity" if args.basis == "none" else "haar",
    )


def rate(step: int, warmup: int, steps: int) -> float:
    """The factor of the learning rates at a step."""
    return min((step + 1) / max(warmup, 1), 1.0) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2


def make_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, with weight decay for matrices, a tenth of the rate for phases and decays, and the unitary step."""
    unitary = {id(weight.parameter) for weight in unitary_layers.unitary_weights(model)}
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "vectors": [], "dynamics": []}
    for name, parameter in model.named_parameters():
        if id(parameter) in unitary and args.basis != "learnt":
            parameter.requires_grad_(False)
        kind = "dynamics" if ".log_" in name else "matrices" if parameter.ndim > 1 else "vectors"
        groups[kind].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups["matrices"], "weight_decay": args.weight_decay},
            {"params": groups["vectors"], "weight_decay": 0.0},
            {"params": groups["dynamics"], "weight_decay": 0.0, "lr": args.lr / 10},
        ],
        lr=args.lr,
    )
    if args.basis == "learnt":
        unitary_layers.attach(model, optimizer)
    return optimizer


def setup(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of one run."""
    options = argparse.ArgumentParser(
        description="Classify images from one pixel a step by unitary state space layers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = options.add_argument
    add("--images", choices=ALL_SETS, default="mnist")
    add("--root", type=Path, default=Path("data"), help="where the images are kept")
    add("--permute", action="store_true", help="in one fixed random order of the pixels")
    add("--shift", type=int, default=0, help="pixels by which training images are moved at most")
    add("--basis", choices=BASES, default="learnt", help="the unitary weights: learnt, random and frozen, the identity")
    add("--flip", action="store_true", help="mirror training images at random")
    add("--widths", type=int, nargs="+", default=(96, 96), help="states of each layer")
    add("--blocks", type=int, nargs="+", help="sides of the blocks for which each layer puts out one vector; 2, then 1")
    add("--pool", choices=("last", "avg"), default="last", help="what is classified: the last output, or the mean")
    add("--dropout", type=number, default=0.0, help="of what is classified")
    add("--epochs", type=int, default=9, help="passes over the training images")
    add("--batch-size", type=int, default=50, help="images a step")
    add("--lr", type=number, default=2e-3, help="learning rate of AdamW")
    add("--weight-decay", type=number, default=0.01, help="of the matrices that are not unitary")
    add("--seed", type=int, default=0, help="of the weights and the order of the images")
    add("--threads", type=int, default=None, help="CPU threads; torch's own choice if not given")
    add("--out", type=Path, default=None, help="folder of the run; runs/pixel_ssm/BASIS if not given")
    add("--resume", action="store_true", help="continue the run in --out, or start it if there is none")
    add("--overwrite", action="store_true", help="replace the run in --out")
    args = parsed(options, argv, QUICK)
    args.device = "cpu"
    args.out = args.out or Path("runs") / "pixel_ssm" / args.basis
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return args


def main(argv: list[str] | None = None) -> None:
    run = PixelRun(setup(argv))
    run.run()
    print(f"results in {run.args.out}", flush=True)


if __name__ == "__main__":
    main()

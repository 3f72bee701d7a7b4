"""Command-line options of the scripts that train on images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from common.image_data import SETS
from common.options import add_direction, number, number_or_none, parsed, settle_direction


def training_parser(description: str) -> argparse.ArgumentParser:
    """Options of training, common to all scripts that train on images."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = options.add_argument
    add("--images", choices=tuple(SETS), default="cifar10")
    add("--root", type=Path, default=Path("data"), help="where the images are, or are downloaded to")
    add("--img-size", type=int, default=None, help="side of the images; that of the set if not given")
    add("--opt", default="projunn", help="name of a timm optimiser")
    add("--lr", type=number, default=1e-3, help="base learning rate")
    add_direction(options, default=None)
    add("--unitary-lr-scale", type=number, help="rmsprop: learning rate of the unitary weights over lr")
    add("--weight-decay", type=number, default=0.0, help="of the weights that are not unitary")
    add("--momentum", type=number, default=0.0, help="of optimisers that have one")
    add("--sched", default="cosine", help="name of a timm schedule but plateau; none for a constant rate")
    add("--epochs", type=int, default=20)
    add("--warmup-epochs", type=int, default=0)
    add("--batch-size", type=int, default=128)
    add("--clip", type=number_or_none, default=None, help="largest norm of the gradient; none for any")
    add("--scale", type=number, default=1.0, help="smallest part of a training image that is cropped; 1 for all of it")
    add("--shift", type=int, help="pixels by which a training image is moved at most; none if not given")
    add("--mixup", type=number, default=0.0, help="alpha of mixup; 0 for none")
    add("--smoothing", type=number, default=0.0, help="label smoothing")
    add("--channels-last", action="store_true", default=None, help="keep the channels of a pixel together in memory")
    add("--ema", type=number, default=0.0, help="decay of a moving average of the weights; 0 for none")
    add(
        "--flip-test",
        action="store_true",
        help="in the end, test as well on the mean for an image and its mirror image",
    )
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=None, help="CPU threads; torch's own choice if not given")
    add("--workers", type=int, default=0, help="processes that load images")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    add("--resume", action="store_true", help="continue the run in --out, or start it if there is none")
    add("--overwrite", action="store_true", help="replace the run in --out")
    return options


def parse(
    options: argparse.ArgumentParser,
    argv: list[str] | None,
    quick: dict[str, Any],
    *,
    unitary_lr_scale: float,
    direction: str = "spectral",
) -> argparse.Namespace:
    """What the options say.

    Args:
        options: the parser.
        argv: the command line.
        quick: other defaults where they say `--quick`.
        unitary_lr_scale: of the paper's recipe, where they name none.
        direction: of the unitary weights with `--opt projunn`, where they name none.
    """
    args = parsed(options, argv, quick)
    if args.direction is None:
        args.direction = direction if args.opt == "projunn" else "spectral"
    settle_direction(args, unitary_lr_scale)
    if args.direction == "rmsprop" and args.opt != "projunn":
        raise ValueError(f"--direction rmsprop needs --opt projunn, got {args.opt}")
    return args

"""Command-line options of the sequence examples."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from common.models import DEFAULT_NONLINEARITY, KINDS, UNITARY_KINDS

DIRECTIONS = ("spectral", "rmsprop")


def number(text: str) -> float:
    """A number, also as a fraction: 1/32."""
    try:
        return float(Fraction(text))
    except ArithmeticError as error:  # argparse takes a ValueError alone for an error of the user
        raise ValueError(f"expected a finite number, got {text!r}") from error


def number_or_none(text: str) -> float | None:
    """A number, or none; inf, as a largest norm, is none as well."""
    return None if text in ("none", "inf") else number(text)


def parser(script: str, description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Options common to all scripts; `defaults` are those of one script (width, init, steps, ...)."""
    options = argparse.ArgumentParser(
        prog=f"{script}.py", description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = options.add_argument
    add("--model", choices=KINDS, default="unitary", help="recurrent layer; ssm: unitary state spaces behind a ReLU")
    add("--width", type=int, default=170, help="hidden units")
    add("--nonlinearity", help="relu or tanh, for unitary also modrelu, identity; modrelu and tanh if not given")
    add("--relu-readout", action="store_true", help="read out the ReLU of the states, as of a linear recurrence")
    add("--init", default="henaff", help="start of the unitary weight: haar, identity, henaff, cayley")
    add("--forget-bias", type=float, default=1.0, help="forget-gate bias of lstm")
    add("--readout-width", type=int, help="rectified units between the states and the outputs; if not given none")
    add_direction(options)
    add("--unitary-lr", type=number, help="spectral: length of a unitary step in radians; the layer's own if not given")
    add("--rank", type=int, help="rank k of projUNN's update; if not given 1 with rmsprop, else n / 4, from 8 to 32")
    add("--frozen", action="store_true", help="leave the unitary weight where it starts")
    add("--variant", choices=("D", "T"), default="T", help="projUNN's update: direct (D) or tangent (T)")
    add("--sampler", default="lsi", help="low-rank sampler: lsi, column, power, svd")
    add("--gradient", choices=("dense", "factored"), default="dense", help="of the unitary weight: matrix or factors")
    add(
        "--bits", type=int, help="the forward pass rounds the unitary weight to so many bits, 2 to 8; none if not given"
    )
    add("--scale", choices=("row", "mse", "max"), default="row", help="of the rounded weight")
    add("--base", choices=("rmsprop", "adamw"), default="rmsprop", help="rule of all other weights")
    add("--lr", type=number, default=3e-3, help="learning rate of all other weights")
    add("--unitary-lr-scale", type=number, help="rmsprop: learning rate of the unitary weights over lr; 1/32")
    add("--schedule", choices=("constant", "cosine"), default="constant", help="learning rate over the run")
    add("--clip", type=number_or_none, default=None, help="largest norm of the gradient; none for any")
    add("--batch-size", type=int, default=128, help="sequences a step")
    add("--steps", type=int, default=5000, help="training steps")
    add("--seed", type=int, default=0, help="of the weights and the data")
    add("--threads", type=int, default=None, help="CPU threads; torch's own choice if not given")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    add("--log-every", type=int, default=50, help="steps between rows of the log (and checkpoints)")
    add("--out", type=Path, default=None, help=f"folder of the run; runs/{script}/MODEL if not given")
    add("--resume", action="store_true", help="continue the run in --out, or start it if there is none")
    add("--overwrite", action="store_true", help="replace the run in --out")
    options.set_defaults(script=script, **defaults)
    return options


def parsed(options: argparse.ArgumentParser, argv: list[str] | None, quick: dict[str, Any]) -> argparse.Namespace:
    """What the command line says, with other defaults where it says `--quick`.

    Args:
        options: the parser, without that option.
        argv: the command line.
        quick: the defaults of a short run, by name.
    """
    options.add_argument("--quick", action="store_true", help=f"defaults for a short run: {quick}")
    if options.parse_args(argv).quick:
        options.set_defaults(**quick)
    return options.parse_args(argv)


def add_direction(options: argparse.ArgumentParser, default: str | None = "spectral") -> None:
    """The option for the rule of the unitary weights."""
    text = "of unitary weights: spectral, the default rule of the layers, or rmsprop, the paper's recipe"
    options.add_argument("--direction", choices=DIRECTIONS, default=default, help=text)


def settle_direction(args: argparse.Namespace, unitary_lr_scale: float) -> None:
    """Fill in the rate of the paper's recipe, or refuse one that the spectral direction would not look at."""
    if args.direction == "rmsprop" and args.unitary_lr_scale is None:
        args.unitary_lr_scale = unitary_lr_scale
    elif args.direction == "spectral" and args.unitary_lr_scale is not None:
        raise ValueError(f"--unitary-lr-scale needs --direction rmsprop, got {args.direction}")


def settle_update(args: argparse.Namespace) -> None:
    """Check the options of the unitary weight together, and fill in the defaults that belong to its direction."""
    settle_direction(args, unitary_lr_scale=1 / 32)
    if args.unitary_lr is not None and args.direction != "spectral":
        raise ValueError(f"--unitary-lr needs --direction spectral, got {args.direction}")
    if args.direction == "rmsprop" and args.gradient == "factored":  # it divides the gradient entry by entry
        raise ValueError("--direction rmsprop needs --gradient dense, got factored")
    if args.rank is None:
        args.rank = "auto" if args.direction == "spectral" else 1
    for name, kinds in (("frozen", UNITARY_KINDS), ("bits", ("unitary",))):
        if getattr(args, name) and args.model not in kinds:
            raise ValueError(f"--{name} needs --model {' or '.join(kinds)}, got {args.model}")
    if args.model == "ssm" and args.gradient == "factored":
        raise ValueError("--model ssm needs --gradient dense, got factored")


def prepare(args: argparse.Namespace) -> argparse.Namespace:
    """Check the options and apply those that concern the whole process; call before a task or model is built."""
    for name in ("width", "readout_width", "rank", "batch_size", "steps", "epochs", "log_every", "threads"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.clip is not None and not args.clip > 0:
        raise ValueError(f"--clip must be positive, got {args.clip}")
    if args.clip is not None and args.gradient == "factored":
        raise ValueError("--clip needs the gradient as a matrix, expected --gradient dense, got factored")
    settle_update(args)
    if args.nonlinearity is None:
        args.nonlinearity = DEFAULT_NONLINEARITY[args.model]
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.out is None:
        args.out = Path("runs") / args.script / args.model
    return args

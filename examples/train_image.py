"""Train any timm model on images, ours with unitary steps: digits, MNIST, Fashion-MNIST, CIFAR-10, folders.

Everything around the model is timm's: data, optimisers, schedules, mixup, moving average, metrics. `--opt projunn`
trains the whole model by RMSprop, its orthogonal weights by projUNN on the same preconditioned gradient with 1/10 of
the rate, as projUNN's image experiments do (Kiani, Balestriero, LeCun, Lloyd, NeurIPS 2022, arXiv 2203.05483). Any
other optimiser of timm has the unitary step attached to it.

    python examples/train_image.py --quick
    python examples/train_image.py --images cifar10 --model orthoresnet_projunn --epochs 100 --scale 0.6
    python examples/train_image.py --images fashion --model orthoplain100_projunn --epochs 5
    python examples/train_image.py --images folder --root DIR --model orthoresnet18_projunn --opt adamw --ema 0.999
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from image_data import SETS
from image_training import ImageRun, make_loaders
from options import number, number_or_none
from timm.utils import ParseKwargs

import unitary_layers  # registers its models and its optimiser with timm

QUICK = {"images": "digits", "epochs": 20, "batch_size": 64}


def training_parser(description: str) -> argparse.ArgumentParser:
    """Options of training, common to all scripts that train on images."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = options.add_argument
    add("--images", choices=tuple(SETS), default="cifar10")
    add("--root", type=Path, default=Path("data"), help="where the images are, or are downloaded to")
    add("--img-size", type=int, default=None, help="side of the images; that of the set if not given")
    add("--opt", default="projunn", help="name of a timm optimiser")
    add("--lr", type=number, default=1e-3, help="base learning rate")
    add("--unitary-lr-scale", type=number, default=1 / 10, help="with projunn: rate of the unitary weights over lr")
    add("--weight-decay", type=number, default=0.0, help="of the weights that are not unitary")
    add("--momentum", type=number, default=0.0, help="of optimisers that have one")
    add("--sched", default="cosine", help="name of a timm schedule but plateau; none for a constant rate")
    add("--epochs", type=int, default=20)
    add("--warmup-epochs", type=int, default=0)
    add("--batch-size", type=int, default=128)
    add("--clip", type=number_or_none, default=None, help="largest norm of the gradient; none for any")
    add("--scale", type=number, default=1.0, help="smallest part of a training image that is cropped; 1 for all of it")
    add("--mixup", type=number, default=0.0, help="alpha of mixup; 0 for none")
    add("--smoothing", type=number, default=0.0, help="label smoothing")
    add("--ema", type=number, default=0.0, help="decay of a moving average of the weights; 0 for none")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=None, help="CPU threads; torch's own choice if not given")
    add("--workers", type=int, default=0, help="processes that load images")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    add("--resume", action="store_true", help="continue the run in --out, or start it if there is none")
    add("--overwrite", action="store_true", help="replace the run in --out")
    return options


def parse(options: argparse.ArgumentParser, argv: list[str] | None, quick: dict[str, Any]) -> argparse.Namespace:
    """What the options say, with other defaults where they say `--quick`."""
    options.add_argument("--quick", action="store_true", help=f"defaults for a short run: {quick}")
    if options.parse_args(argv).quick:
        options.set_defaults(**quick)
    return options.parse_args(argv)


def parser() -> argparse.ArgumentParser:
    """Options of one run."""
    options = training_parser(f"Train an image classifier (unitary_layers {unitary_layers.__version__}).")
    add = options.add_argument
    add("--model", default="orthoresnet_projunn", help="name of a timm model")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help="more of the model")
    add("--update", default=None, help="variant of the unitary step, D or T; the model's own if not given")
    add("--out", type=Path, default=None, help="folder of the run; runs/train_image/IMAGES_MODEL if not given")
    return options


def setup(argv: list[str] | None = None) -> ImageRun:
    """The run that the options describe."""
    args = parse(parser(), argv, QUICK)
    if args.out is None:
        args.out = Path("runs") / "train_image" / f"{args.images}_{args.model}"
    train, test, classes = make_loaders(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    channels, *_ = SETS[args.images].size
    layout = {"num_classes": classes, "in_chans": channels, "update": args.update}
    known = timm.get_pretrained_cfg(args.model)
    if known is not None and known.fixed_input_size:
        layout["img_size"] = args.img_size or SETS[args.images].size[-1]
    model = timm.create_model(args.model, **(layout | args.model_kwargs))
    return ImageRun(args, model, train, test, f"{args.images}, {args.model}")


def main(argv: list[str] | None = None) -> None:
    run = setup(argv)
    run.run()
    print(f"results in {run.args.out}", flush=True)


if __name__ == "__main__":
    main()

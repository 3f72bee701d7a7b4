"""Train any timm model on images, ours with unitary steps: digits, MNIST, Fashion-MNIST, CIFAR-10, folders.

Everything around the model is timm's: data, optimisers, schedules, mixup, moving average, metrics. `--opt projunn`
trains the whole model by RMSprop, its orthogonal weights by the default rule of their layers, or with `--direction
rmsprop` by projUNN on the same divided gradient with 1/10 of the rate, as projUNN's image experiments do (Kiani,
Balestriero, LeCun, Lloyd, NeurIPS 2022, arXiv 2203.05483). Any other optimiser of timm has the unitary step attached to
it.

    python examples/train_image.py --quick
    python examples/train_image.py --images cifar10 --model orthoresnet_projunn --epochs 100 --scale 0.6
    python examples/train_image.py --images fashion --model orthoplain100_projunn --epochs 5
    python examples/train_image.py --images folder --root DIR --model resnet18 --opt adamw --ema 0.999
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from common.image_data import SETS
from common.image_options import parse, training_parser
from common.image_training import ImageRun, first_images, make_loaders
from timm.utils import ParseKwargs

import unitary_layers  # registers its models and its optimiser with timm

QUICK = {"images": "digits", "epochs": 20, "batch_size": 64}


def parser() -> argparse.ArgumentParser:
    """Options of one run."""
    options = training_parser(f"Train an image classifier (unitary_layers {unitary_layers.__version__}).")
    add = options.add_argument
    add("--model", default="orthoresnet_projunn", help="name of a timm model")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help="more of the model")
    add("--whiten", type=int, metavar="IMAGES", help="fit the stem to so many training images, if it whitens them")
    add("--update", default=None, help="variant of the unitary step, D or T; the model's own if not given")
    add("--out", type=Path, default=None, help="folder of the run; runs/train_image/IMAGES_MODEL if not given")
    return options


def setup(argv: list[str] | None = None) -> ImageRun:
    """The run that the options describe."""
    args = parse(parser(), argv, QUICK, unitary_lr_scale=1 / 10)
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
    if args.whiten is not None:
        if args.whiten < 1:
            raise ValueError(f"--whiten must be at least 1, got {args.whiten}")
        if not hasattr(model, "init_whitening"):
            raise ValueError(f"--whiten needs a model with a whitening stem, got {args.model}")
        model.init_whitening(first_images(args, args.whiten))
    return ImageRun(args, model, train, test, f"{args.images}, {args.model}")


def main(argv: list[str] | None = None) -> None:
    run = setup(argv)
    run.run()
    print(f"results in {run.args.out}", flush=True)


if __name__ == "__main__":
    main()

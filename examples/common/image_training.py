"""What the image examples share: one run on timm's parts, with its log, curves and checkpoints.

A run fills one folder (`--out`, by default runs/<script>/<set>_<model>): config.json, log.csv, curves.png, the last two
checkpoints and, at the end, model.safetensors, which `timm.create_model(name, checkpoint_path=...)` reads. An epoch is
a function of the state before it and of (seed, epoch), so `--resume` continues as if it had not been stopped.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy, random_seed
from torch import Tensor, nn
from tqdm import tqdm

from common.curves import draw_runs
from common.image_data import SETS, make_dataset, make_loader
from common.log import Row, describe
from common.resumable import EpochRun
from unitary_layers import attach, retract_, unitarity_error_of
from unitary_layers.training import unitary_weights


def number_of_classes(args: argparse.Namespace, train: Any, test: Any) -> int:
    """Those of the set, or the subfolders that both splits of a folder have."""
    if SETS[args.images].classes is not None:
        return SETS[args.images].classes
    if args.root in (Path(train.reader.root), Path(test.reader.root)):  # timm takes all there is where a split is not
        raise ValueError(f"{args.root}: expected subfolders train and validation")
    ours, theirs = train.reader.class_to_idx, test.reader.class_to_idx
    if ours != theirs:
        raise ValueError(f"{args.root}: expected the same classes in both splits, got {[*ours]} and {[*theirs]}")
    return len(ours)


def make_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimiser of that name; any but projunn has the step of the unitary weights attached to it."""
    options = {"lr": args.lr, "weight_decay": args.weight_decay, "momentum": args.momentum}
    if args.opt == "projunn" and args.direction == "rmsprop":
        options |= {"unitary_lr_scale": args.unitary_lr_scale, "direction": "rmsprop"}
    optimizer = timm.optim.create_optimizer_v2(model, args.opt, **options)
    if args.opt != "projunn" and any(True for _ in unitary_weights(model)):
        attach(model, optimizer)
    return optimizer


class ImageRun(EpochRun):
    """One run: a model, its optimiser, its data and where it stands.

    Attributes:
        average: timm's moving average of the weights with `--ema`, else None.
    """

    def __init__(self, args: argparse.Namespace, model: nn.Module, train: Any, test: Any, title: str) -> None:
        super().__init__(args)
        self.memory = {"memory_format": torch.channels_last} if args.channels_last else {}
        self.model, self.title = model.to(args.device, **self.memory), title
        self.train_loader, self.test_loader, self.per_epoch = train, test, len(train)
        self.optimizer = make_optimizer(args, self.model)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched=args.sched,
            num_epochs=args.epochs,
            warmup_epochs=args.warmup_epochs,
            warmup_lr=args.lr / 100,
            step_on_epochs=False,
            updates_per_epoch=len(train),
        )
        self.average = ModelEmaV3(self.model, decay=args.ema, use_warmup=True) if args.ema else None
        classes = model.num_classes
        mixed = Mixup(args.mixup, label_smoothing=args.smoothing, num_classes=classes) if args.mixup else None
        self.mixup, self.loss = mixed, SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(args.smoothing)
        self.open({"title": title, "baseline": math.log(classes), "baseline_name": "guessing"}, timm=timm.__version__)
        if self.step == 0:
            self.weights.unlink(missing_ok=True)

    @property
    def weights(self) -> Path:
        """Where the trained model is written."""
        return self.args.out / "model.safetensors"

    def config(self) -> dict[str, Any]:
        return self.options_but("root", "workers", "flip_test")

    def state(self) -> dict[str, Any]:
        average = self.average.module.state_dict() if self.average else None
        return super().state() | {"average": average}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        if self.average:
            with torch.no_grad():  # load_state_dict would make the average unitary, which it is not
                for name, tensor in self.average.module.state_dict().items():
                    tensor.copy_(state["average"][name])

    def train_epoch(self) -> Row:
        """One pass over the training images; mean loss and accuracy (of mixed images none)."""
        random_seed(self.args.seed, self.epoch)
        self.model.train()
        losses, correct = AverageMeter(), AverageMeter()
        label = f"epoch {self.epoch + 1}/{self.args.epochs}"
        bar = tqdm(self.train_loader, desc=label, leave=False, disable=not sys.stderr.isatty())
        for inputs, targets in bar:
            inputs, targets = inputs.to(self.args.device, **self.memory), targets.to(self.args.device)
            loss, accuracy_now = self.update(inputs, targets)
            losses.update(loss, len(inputs))
            correct.update(accuracy_now, len(inputs))
            bar.set_postfix_str(f"loss {losses.avg:.3f}, unitarity error {self.unitarity_error() or 0:.0e}")
        return {"loss": losses.avg, "accuracy": None if self.mixup else correct.avg}

    def update(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Loss and accuracy of one batch, and one step on it."""
        labels = targets
        if self.mixup:
            inputs, targets = self.mixup(inputs, targets)
        outputs = self.model(inputs)
        loss = self.loss(outputs, targets)
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"expected a finite loss, got {loss.item()} in step {self.step + 1}: take a smaller --lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.args.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip)
        self.optimizer.step()
        self.step += 1
        if self.scheduler:
            self.scheduler.step_update(self.step)
        if self.average:
            self.average.update(self.model, self.step)
        return loss.item(), accuracy(outputs.detach(), labels)[0].item() / 100

    def unitarity_error(self) -> float | None:
        return float(unitarity_error_of(self.model)) if any(True for _ in unitary_weights(self.model)) else None

    def evaluated(self) -> nn.Module:
        """The model, or its average with each unitary weight moved to the nearest unitary matrix."""
        if self.average is None:
            return self.model
        model = copy.deepcopy(self.average.module)
        retract_(model)
        return model

    @torch.no_grad()
    def evaluate(self, flip: bool = False) -> Row:
        """Mean loss and accuracy over the test images; `flip` takes the mean output of each and its mirror image."""
        model, losses, correct = self.evaluated().eval(), AverageMeter(), AverageMeter()
        for inputs, targets in self.test_loader:
            inputs, targets = inputs.to(self.args.device, **self.memory), targets.to(self.args.device)
            outputs = (model(inputs) + model(inputs.flip(-1))) / 2 if flip else model(inputs)
            losses.update(F.cross_entropy(outputs, targets).item(), len(targets))
            correct.update(accuracy(outputs, targets)[0].item() / 100, len(targets))
        return {"test_loss": losses.avg, "test_accuracy": correct.avg}

    def run(self) -> list[Row]:
        """Train to the last epoch, and write the model; returns the rows of the log."""
        super().run()
        if self.args.flip_test:
            row = {"step": self.step, **self.evaluate(flip=True)}
            print(f"{self.title}, mean of each image and its mirror image: {describe(row)}", flush=True)
        save_model(self.evaluated(), str(self.weights))
        self.draw()
        return self.log.rows

    def draw(self) -> None:
        """Curves of this run."""
        draw_runs(self.args.out / "curves.png", {self.args.model: self.log.rows}, **self.summary)


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that fit no run."""
    for name in ("epochs", "batch_size", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.shift is not None and args.shift < 0:
        raise ValueError(f"--shift must be at least 0, got {args.shift}")
    if args.clip is not None and not args.clip > 0:
        raise ValueError(f"--clip must be positive, got {args.clip}")
    if args.mixup and args.batch_size % 2:
        raise ValueError(f"--batch-size must be even with --mixup, got {args.batch_size}")
    if args.sched == "plateau":
        raise ValueError("--sched must be a schedule of the step alone, got plateau")
    if not 0 < args.scale <= 1:
        raise ValueError(f"--scale must be above 0 and at most 1, got {args.scale}")


def loader_options(args: argparse.Namespace, standardise: bool) -> dict[str, Any]:
    """What all loaders of a run share: the size of the images, and what is taken off their pixels and divides them."""
    source = SETS[args.images]
    size = source.size if args.img_size is None else (source.size[0], args.img_size, args.img_size)
    mean, std = (source.mean, source.std) if standardise else ((0.0,) * size[0], (1.0,) * size[0])
    return {"size": size, "mean": mean, "std": std, "workers": args.workers}


def make_loaders(args: argparse.Namespace, standardise: bool = True) -> tuple[Any, Any, int]:
    """The loaders of training and test images, standardised or in [0, 1], and the number of classes."""
    check_options(args)
    common = {"batch_size": args.batch_size, **loader_options(args, standardise)}
    train, test = (make_dataset(args.images, args.root, flag) for flag in (True, False))
    if len(train) < args.batch_size:
        raise ValueError(f"expected at least --batch-size {args.batch_size} training images, got {len(train)}")
    classes = number_of_classes(args, train, test)
    train_loader = make_loader(args.images, train, train=True, scale=args.scale, shift=args.shift, **common)
    return train_loader, make_loader(args.images, test, train=False, **common), classes


def first_images(args: argparse.Namespace, count: int) -> Tensor:
    """The first training images, standardised, and neither moved nor cropped nor mirrored."""
    train = make_dataset(args.images, args.root, True)
    options = {"batch_size": count, **loader_options(args, standardise=True)}
    return next(iter(make_loader(args.images, train, train=False, **options)))[0]

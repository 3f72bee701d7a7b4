"""What the sequence examples share: the training loop with its log, curves and checkpoints.

A run fills one folder (`--out`, by default runs/<script>/<model>): config.json, log.csv, curves.png, and the last two
checkpoints. One is written with every row of the log, and `--resume` continues from it bit for bit.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from common.curves import draw_runs
from common.log import Row, describe
from common.models import UNITARY_KINDS, SequenceModel
from common.resumable import ResumableRun
from common.tasks import Task


def update_options(args: argparse.Namespace) -> dict[str, object]:
    """Keywords of the `UpdateRule` of the unitary weight."""
    common = {"variant": args.variant, "rank": args.rank, "sampler": args.sampler}
    if args.direction == "spectral":
        return common | {"lr": args.unitary_lr}
    return common | {"direction": "gradient"}  # which the optimiser divides, elementwise


def build_model(args: argparse.Namespace, task: Task) -> SequenceModel:
    """The model of `args` for `task`, with weights drawn from `args.seed`."""
    torch.manual_seed(args.seed)
    model = SequenceModel(
        args.model,
        task.input_size,
        args.width,
        task.output_size,
        task.every_step,
        nonlinearity=args.nonlinearity,
        init=args.init,
        update=update_options(args),
        gradient=args.gradient,
        forget_bias=args.forget_bias,
        relu_readout=args.relu_readout,
        quantised={"weight_bits": args.bits, "weight_scale": args.scale},
        readout_width=args.readout_width,
    )
    if args.frozen:
        model.freeze_recurrence_()
    return model.to(args.device)


def build_optimizer(args: argparse.Namespace, model: SequenceModel) -> torch.optim.Optimizer:
    """RMSprop or AdamW for every model; its unitary weights by the rule of the layer, or, as the paper does, by projUNN
    on the same divided gradient.
    """
    if model.kind not in UNITARY_KINDS:
        base = {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}[args.base]
        return base(model.parameters(), lr=args.lr, weight_decay=0.0)
    from unitary_layers import ProjUNN  # here, so that the baselines need torch alone

    paper = {"direction": "rmsprop", "unitary_lr_scale": args.unitary_lr_scale}
    options = paper if args.direction == "rmsprop" else {}
    return ProjUNN(model.parameters(), lr=args.lr, base=args.base, **options)


class Trainer(ResumableRun):
    """One run: a model, its optimiser and where it stands.

    Attributes:
        network: what runs in training: the model itself, or a wrapper of it.
    """

    def __init__(self, args: argparse.Namespace, task: Task) -> None:
        super().__init__(args)
        self.task = task
        self.model = self.network = build_model(args, task)
        self.optimizer = build_optimizer(args, self.model)
        self.scheduler = CosineAnnealingLR(self.optimizer, args.steps) if args.schedule == "cosine" else None
        self.open({"title": task.title, "baseline": task.baseline, "baseline_name": task.baseline_name})

    def config(self) -> dict[str, Any]:
        """The options that a run must keep when it is resumed; `steps` may grow unless the schedule depends on it."""
        return self.options_but("data", "epochs", "log_every", *(("steps",) if self.scheduler is None else ()))

    def train_step(self) -> tuple[float, float]:
        """Loss and accuracy of one batch, and the update; no update where the loss is not finite."""
        start = time.perf_counter()
        inputs, targets = self.task.batch(self.step)
        outputs = self.network(inputs)
        loss = self.task.loss(outputs, targets)
        result = loss.item(), self.task.accuracy(outputs.detach(), targets).item()
        if math.isfinite(result[0]):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self.args.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip)
            self.optimizer.step()
            if self.scheduler:
                self.scheduler.step()
        self.step += 1
        self.seconds += time.perf_counter() - start
        return result

    @torch.no_grad()
    def evaluate(self) -> Row:
        """Mean loss and accuracy over the held-out sequences."""
        self.model.eval()
        sums, count = [0.0, 0.0], 0
        for inputs, targets in self.task.test_batches():
            outputs, size = self.model(inputs), inputs.size(1)
            sums[0] += self.task.loss(outputs, targets).item() * size
            sums[1] += self.task.accuracy(outputs, targets).item() * size
            count += size
        self.model.train()
        return {"test_loss": sums[0] / count, "test_accuracy": sums[1] / count}

    def due(self) -> tuple[bool, bool]:
        """Whether a row of the log and whether an evaluation is due after the present step."""
        last, every = self.step == self.args.steps, self.task.eval_every
        evaluate = every is not None and (last or self.step % every == 0)
        return evaluate or last or self.step == 1 or self.step % self.args.log_every == 0, evaluate

    def row(self, results: list[tuple[float, float]], seconds: float) -> Row:
        """The row of the log for the steps since the one before, which took `seconds`."""
        losses, accuracies = zip(*results, strict=True)
        return {
            "step": self.step,
            "loss": sum(losses) / len(losses),
            "accuracy": sum(accuracies) / len(accuracies),
            "unitarity_error": self.model.unitarity_error(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": self.seconds,
            "steps_per_second": len(results) / seconds,
        }

    def run(self) -> list[Row]:
        """Train to the last step, or until the loss is not finite; returns the rows of the log."""
        bar = tqdm(initial=self.step, total=self.args.steps, desc=self.args.model, disable=not sys.stderr.isatty())
        results, since, finite = [], self.seconds, True
        with bar:
            while finite and self.step < self.args.steps:
                results.append(self.train_step())
                finite = math.isfinite(results[-1][0])
                bar.update()
                logging, evaluating = self.due()
                if not (logging or not finite):
                    continue
                row = self.row(results, self.seconds - since) | (self.evaluate() if evaluating and finite else {})
                self.report(row, bar)
                results, since = [], self.seconds
                if finite:
                    self.save()
        if not finite:
            print(f"{self.args.model}: stopped, the loss of step {self.step} is {row['loss']}", flush=True)
        self.draw()
        return self.log.rows

    def report(self, row: Row, bar: tqdm) -> None:
        """Put a row into the log and on the terminal: behind the bar, or as a line where there is no bar."""
        self.log.append(row)
        if bar.disable:
            print(f"{self.args.model} {describe(row)}", flush=True)
        else:
            bar.set_postfix_str(describe(row).partition(": ")[2])

    def draw(self) -> None:
        """Curves of this run."""
        draw_runs(self.args.out / "curves.png", {self.args.model: self.log.rows}, **self.summary)


def train(args: argparse.Namespace, task: Task) -> list[Row]:
    """Run one script: train (or resume) the model of `args` on `task`."""
    rows = Trainer(args, task).run()
    print(f"{args.model}: {describe(rows[-1]) if rows else 'nothing to do'}; results in {args.out}", flush=True)
    return rows

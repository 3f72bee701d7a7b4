"""What every training example shares: one run in one folder, which can be stopped at any instant and resumed.

The folder (`--out`) holds config.json, log.csv and the last two checkpoints. `--resume` continues from the newest whole
one bit for bit, with the log cut back to its step; in a folder without a checkpoint it starts the run, so that one
command line serves for both.
"""

from __future__ import annotations

import argparse
import json
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.checkpoint import check_config, holds_checkpoint, load_latest, remove_checkpoints, save_checkpoint
from common.log import Log, Row, describe

HOUSEKEEPING = ("out", "resume", "overwrite", "threads", "device")  # options that may differ on resuming


class ResumableRun(ABC):
    """One run: a model, its optimiser, and where it stands.

    Attributes:
        model, optimizer, scheduler: made by the class that inherits; the last may be None.
        step, seconds: updates done and the time spent in them.
        log: the rows written so far.
        summary: what the curves say about the task.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    log: Log
    summary: dict[str, Any]

    def __init__(self, args: argparse.Namespace) -> None:
        """Look at the folder of `args.out`, and refuse one that holds a run unless the options say what to do."""
        self.args = args
        self.checkpoint: Path = args.out / "checkpoint.pt"
        self.step, self.seconds = 0, 0.0
        if holds_checkpoint(self.checkpoint) and not (args.resume or args.overwrite):
            raise RuntimeError(f"{args.out} holds a run: --resume continues, --overwrite replaces it, or change --out")

    def open(self, summary: dict[str, Any], **versions: str) -> None:
        """Resume the run in the folder, or start it there."""
        out = self.args.out
        out.mkdir(parents=True, exist_ok=True)
        if self.args.resume and holds_checkpoint(self.checkpoint):
            self.load()
        else:
            remove_checkpoints(self.checkpoint)
        self.log, self.summary = Log(out / "log.csv", self.step), summary
        versions = {"torch": torch.__version__, **versions}
        config = {"options": self.config(), "task": summary, **versions, "device": self.args.device}
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The options that a run must keep when it is resumed."""

    def options_but(self, *names: str) -> dict[str, Any]:
        """The options without these and those that may always differ."""
        return {name: value for name, value in vars(self.args).items() if name not in (*HOUSEKEEPING, *names)}

    def state(self) -> dict[str, Any]:
        """All that the steps to come depend on."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "rng": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo everything since `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        save_checkpoint(self.checkpoint, {"config": self.config(), **self.state()})

    def load(self) -> None:
        content = load_latest(self.checkpoint)
        check_config(self.checkpoint, content["config"], self.config())
        self.restore(content)


class EpochRun(ResumableRun):
    """A run by epochs, each with a row in the log and a checkpoint.

    Attributes:
        epoch: whole epochs done.
        per_epoch: updates of each.
        title: what the lines that are printed begin with.
    """

    per_epoch: int
    title: str

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.epoch = 0

    @abstractmethod
    def train_epoch(self) -> Row:
        """One pass over the training data; mean loss and accuracy."""

    @abstractmethod
    def evaluate(self) -> Row:
        """Mean loss and accuracy over the test data."""

    @abstractmethod
    def unitarity_error(self) -> float | None:
        """The largest |W^H W - I|_F of the model; None where nothing is unitary."""

    def state(self) -> dict[str, Any]:
        return super().state() | {"epoch": self.epoch}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.epoch = state["epoch"]

    def run(self) -> list[Row]:
        """Train to the last epoch; returns the rows of the log."""
        while self.epoch < self.args.epochs:
            start = time.perf_counter()
            row = self.train_epoch()
            seconds = time.perf_counter() - start
            self.epoch, self.seconds = self.epoch + 1, self.seconds + seconds
            row |= {"step": self.step, "seconds": self.seconds, "steps_per_second": self.per_epoch / seconds}
            row |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "unitarity_error": self.unitarity_error()}
            self.log.append(row | self.evaluate())
            print(f"{self.title}, epoch {self.epoch}: {describe(self.log.rows[-1])}", flush=True)
            self.save()
        return self.log.rows

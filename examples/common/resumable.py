"""What every training example shares: one run in one folder, which can be stopped at any instant and resumed.

The folder (`--out`) holds config.json, log.csv and the last two checkpoints. `--resume` continues from the newest whole
one bit for bit, with the log cut back to its step; in a folder without a checkpoint it starts the run, so that one
command line serves for both.
"""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.checkpoint import check_config, holds_checkpoint, load_latest, remove_checkpoints, save_checkpoint
from common.log import Log

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

"""Digits pixel by pixel on several processes, which share the gradients of the unitary weight by thin products.

Each rank takes its part of every batch. DistributedDataParallel averages the ordinary parameters, `share_gradients` the
unitary ones: 4 k n + 1 numbers a step instead of n^2. Where a process dies, torchrun starts all of them again, and they
go on from the last row of the log, bit for bit. All processes see the same folder `--out`.

    torchrun --nproc-per-node 2 --max-restarts 3 examples/train_distributed.py --epochs 5 --resume
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import pixel_sequence
import torch
import torch.distributed as dist
from common.checkpoint import holds_checkpoint
from common.log import Row
from common.tasks import PixelSequence
from common.training import Trainer
from torch.nn.parallel import DistributedDataParallel

from unitary_layers import share_gradients


class RankTrainer(Trainer):
    """One rank of a run; the first one keeps the log, the checkpoint and the picture."""

    def __init__(self, args: argparse.Namespace, task: PixelSequence) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if args.batch_size % self.world:
            raise ValueError(f"expected --batch-size in multiples of the {self.world} ranks, got {args.batch_size}")
        shared = args.out / "checkpoint.pt"
        resuming = args.resume and holds_checkpoint(shared)
        dist.barrier()  # all have looked before the first one writes
        if self.rank:
            args.out = Path(tempfile.mkdtemp())
        super().__init__(args, task)
        if self.rank and resuming:
            self.checkpoint = shared
            self.load()
        share_gradients(self.model)
        device = torch.device(args.device)
        self.network = DistributedDataParallel(self.model, [device] if device.type == "cuda" else None)
        whole = task.batch
        task.batch = lambda step: tuple(part.contiguous() for part in self.part_of(*whole(step)))

    def part_of(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's columns of a batch."""
        return inputs[:, self.rank :: self.world], targets[self.rank :: self.world]

    def save(self) -> None:
        if self.rank == 0:
            super().save()
        dist.barrier()  # no rank is a step ahead of a checkpoint that a restart would go back to

    def report(self, row: Row, bar: object) -> None:
        if self.rank == 0:
            super().report(row, bar)

    def draw(self) -> None:
        if self.rank == 0:
            super().draw()


def start(backend: str) -> None:
    """Joins the ranks; after a restart torchrun's store still holds the addresses of the dead under their names."""
    store, rank, world = next(dist.rendezvous("env://"))
    attempt = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=world)


def setup(argv: list[str] | None = None) -> tuple[argparse.Namespace, PixelSequence]:
    """Options of one run and its task: those of pixel_sequence.py with other defaults, and a folder of its own."""
    defaults = "--images digits --width 64 --gradient factored --out runs/train_distributed/unitary"
    args, task = pixel_sequence.setup([*defaults.split(), *(argv or [])])
    if args.model != "unitary":
        raise ValueError(f"expected --model unitary, got {args.model!r}")
    return args, task


def main(argv: list[str] | None = None) -> None:
    args, task = setup(argv)
    cuda = torch.device(args.device).type == "cuda"
    start("nccl" if cuda else "gloo")
    try:
        if cuda:
            args.device = f"cuda:{dist.get_node_local_rank()}"
            torch.cuda.set_device(args.device)
        RankTrainer(args, task).run()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])

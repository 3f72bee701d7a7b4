"""A training step on several processes of one machine (gloo, one thread each): the bytes that cross, and the time."""

import json
import math
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import PAPER, Row, Work
from timing import interleaved
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from unitary_layers import UnitaryLinear, projunn_step, share_gradients
from unitary_layers.training import ThinProducts, thin_products_hook

BASE = "dense, DDP"


def distributed(n: int, rows: int, repetitions: int, ranks: int = 2) -> Iterator[Row]:
    """A training step of a linear layer, by each way to bring the gradients of the ranks together."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.set_forkserver_preload(["unitary_layers"])  # imported once for all ranks and sizes
        arguments = (ranks, n, rows, repetitions, folder)
        mp.start_processes(_measure, arguments, nprocs=ranks, start_method="forkserver")
        times, moved = json.loads(Path(folder, "found.json").read_text())
    size = f"{n}, {rows} rows a rank, {ranks} ranks"
    for name, seconds in times.items():
        yield Row("distributed", size, name, seconds * 1e3, seconds / times[BASE], BASE)
    for name, count in moved.items():
        yield Row("distributed, all-reduced", size, name, math.nan, count / 1024, "1 KiB a rank and step")


def _measure(rank: int, ranks: int, n: int, rows: int, repetitions: int, folder: str) -> None:
    """One rank; the first one leaves what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    x = torch.randn(rows, n, requires_grad=True)
    works = _works(n, x)
    times = interleaved(works, repetitions, budget=math.inf)  # or a rank may sit out what another waits for
    moved = {name: _bytes(work) for name, work in works.items()}
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps([times, moved]))
    dist.barrier()
    dist.destroy_process_group()


def _works(n: int, x: Tensor) -> dict[str, Work]:
    layers = {
        "nn.Linear, DDP": nn.Linear(n, n),
        BASE: UnitaryLinear(n, n, update=PAPER),
        "dense, thin_products_hook": UnitaryLinear(n, n, update=PAPER),
        "dense, share_gradients": UnitaryLinear(n, n, update=PAPER),
        "factored, share_gradients": UnitaryLinear(n, n, update=PAPER, gradient="factored"),
    }
    works = {}
    for name, layer in layers.items():
        if name.endswith("share_gradients"):
            share_gradients(layer)
        wrapped = DistributedDataParallel(layer)
        if name.endswith("hook"):
            wrapped.register_comm_hook(ThinProducts(layer), thin_products_hook)
        else:  # torch's hook for what it does without one, where its all-reduce can be counted
            wrapped.register_comm_hook(None, allreduce_hook)
        works[name] = _step(wrapped, x)
    return works


def _step(wrapped: DistributedDataParallel, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1e-6)

    def work() -> None:
        wrapped(x).sum().backward()
        projunn_step(wrapped)
        optimizer.step()
        optimizer.zero_grad()
        x.grad = None

    return work


def _bytes(work: Work) -> int:
    """Of the tensors that a rank gives to all-reduce in a work."""
    with _listening() as found:
        work()
    return sum(found)


@contextmanager
def _listening() -> Iterator[list[int]]:
    real, found = dist.all_reduce, []

    def all_reduce(tensor: Tensor, *args: object, **options: object) -> object:
        found.append(tensor.numel() * tensor.element_size())
        return real(tensor, *args, **options)

    dist.all_reduce = all_reduce
    try:
        yield found
    finally:
        dist.all_reduce = real

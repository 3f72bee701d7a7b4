"""What the ranks of the distributed tests do: each scenario trains a small model and returns what it saw."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unitary_layers import ProjUNN, UnitaryLinear, UpdateRule, attach, projunn_step, share_gradients

N, ROWS, STEPS = 16, 8, 50
WIRE: list[int] = []  # numbers of each collective of ours


def model(gradient: str = "dense", seed: int = 0, **rule: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    options = {"gradient": gradient, "update": UpdateRule(lr=0.05, **rule), "dtype": torch.float64}
    middle = [UnitaryLinear(N, N, **options), nn.Tanh(), UnitaryLinear(N, N, **options)]
    return nn.Sequential(nn.Linear(6, N, dtype=torch.float64), *middle, nn.Linear(N, 3, dtype=torch.float64))


def batch(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, 6, dtype=torch.float64, generator=generator)


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) - x[:, :3].sin()).square().mean()


def train(net: nn.Module, tree: nn.Module, part: slice = slice(None), steps: int = STEPS) -> dict[str, Tensor]:
    """``net`` is what runs (perhaps wrapped), ``tree`` the module itself; the weights at the end."""
    ordinary = torch.optim.SGD([p for n, p in tree.named_parameters() if n[0] in "04"], lr=0.1)
    for step in range(steps):
        loss_of(net, batch(step)[part]).backward()
        projunn_step(tree)
        ordinary.step()
        ordinary.zero_grad()
    return tree.state_dict()


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Counts the numbers that our own collectives move."""
    real = dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        WIRE.append(tensor.numel())
        return real(tensor, *args, **kwargs)

    WIRE.clear()
    dist.all_reduce = counted
    try:
        yield
    finally:
        dist.all_reduce = real


def plain(part: slice) -> Any:
    net = model()
    return train(DistributedDataParallel(net), net, part)


def shared(part: slice, gradient: str = "dense", **rule: Any) -> Any:
    net = model(gradient, seed=dist.get_rank(), **rule)  # the first rank's weights win
    share_gradients(net)
    with counting():
        return train(DistributedDataParallel(net), net, part), sum(WIRE)


def shared_factored(part: slice) -> Any:
    return shared(part, "factored")


def shared_preconditioned(part: slice) -> Any:
    return shared(part, "factored", precondition=True)


def shared_power(part: slice) -> Any:
    return shared(part, sampler="power", rank=2)


def shared_svd(part: slice) -> Any:
    return shared(part, sampler="svd")


def accumulated(part: slice) -> Any:
    """Two micro-batches a step, the first without synchronisation, by an attached optimiser."""
    net = model()
    share_gradients(net)
    wrapped, optimizer = DistributedDataParallel(net), torch.optim.SGD(net.parameters(), lr=0.1)
    attach(net, optimizer)
    for step in range(10):
        x = batch(step)[part]
        with wrapped.no_sync():
            loss_of(wrapped, x[:1]).backward()
        loss_of(wrapped, x[1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.state_dict()


def optimised(part: slice) -> Any:
    states = []
    for direction in ("rmsprop", "moments", "momentum"):
        net = model()
        share_gradients(net)
        wrapped = DistributedDataParallel(net)
        optimizer = ProjUNN(net.parameters(), lr=0.01, direction=direction, momentum=0.5)
        for step in range(10):
            optimizer.zero_grad()
            loss_of(wrapped, batch(step)[part]).backward()
            optimizer.step()
        states.append(net.state_dict())
    return states


def unused(part: slice) -> Any:
    """The first rank leaves one weight out, and in the next step all do."""
    net = model()
    share_gradients(net)
    for step in range(2):
        skipping = dist.get_rank() == 0 or step == 1
        layers = [m for i, m in enumerate(net) if not (skipping and i == 3)]
        loss_of(nn.Sequential(*layers), batch(step)[part]).backward()
        projunn_step(net)
    return net.state_dict()


def broken(part: slice) -> Any:
    """A NaN on the last rank: all ranks say so and change nothing."""
    net = model()
    share_gradients(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = batch(0)[part] * (math.nan if dist.get_rank() == dist.get_world_size() - 1 else 1)
    loss_of(net, x).backward()
    try:
        projunn_step(net)
    except RuntimeError as error:
        unchanged = all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        return str(error), unchanged
    return "no error", False


def refused(part: slice) -> Any:
    """What raises, with its message."""
    messages = []
    wrapped = DistributedDataParallel(model())
    for attempt in (
        lambda: loss_of(model("factored"), batch(0)).backward(),
        lambda: share_gradients(wrapped),
        lambda: share_gradients(nn.Linear(2, 2)),
        lambda: attach(wrapped),
    ):
        try:
            attempt()
        except (RuntimeError, ValueError) as error:
            messages.append(str(error))
    mine = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    net = model("factored")
    share_gradients(net, mine)
    loss_of(net, batch(0)).backward()
    return messages


SCENARIOS: tuple[Callable[[slice], Any], ...] = (
    plain,
    shared,
    shared_factored,
    shared_preconditioned,
    shared_power,
    shared_svd,
    accumulated,
    optimised,
    unused,
    broken,
    refused,
)


def work(rank: int, world: int, folder: Path) -> None:
    """One rank: runs every scenario and leaves a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = {scenario.__name__: scenario(slice(rank, None, world)) for scenario in SCENARIOS}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()

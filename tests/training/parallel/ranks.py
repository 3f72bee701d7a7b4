"""What the ranks of the distributed tests do: each scenario trains small models and returns what it saw."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from layers.entries import ENTRIES, Entry, state_twice
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.parallel import DistributedDataParallel

from unitary_layers import ProjUNN, UnitaryLinear, UpdateRule, attach, projunn_step, share_gradients
from unitary_layers.training import ThinProducts, thin_products_hook, unitary_weights

N, ROWS, STEPS = 16, 8, 50
State = dict[str, Tensor]


def model(gradient: str = "dense", seed: int = 0, **rule: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    options = {
        "gradient": gradient,
        "update": UpdateRule(**{"lr": 0.05, "direction": "gradient", **rule}),
        "dtype": torch.float64,
    }
    middle = [UnitaryLinear(N, N, **options), nn.Tanh(), UnitaryLinear(N, N, **options)]
    return nn.Sequential(nn.Linear(6, N, dtype=torch.float64), *middle, nn.Linear(N, 3, dtype=torch.float64))


def batch(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, 6, dtype=torch.float64, generator=generator)


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) - x[:, :3].sin()).square().mean()


@dataclass(frozen=True)
class Run:
    """A training of a small model, by several ranks or by one on the joint batch.

    Attributes:
        by: how ranks come together: "ddp" alone, "hook" (of its communication) or "share" (``share_gradients``).
        gradient: of the unitary layers.
        trigger: "step", "attach", "ProjUNN", or a direction of it.
        steps: how many.
        rule: options of the ``UpdateRule``.
    """

    by: str
    gradient: str = "dense"
    trigger: str = "step"
    steps: int = 10
    rule: dict[str, Any] = field(default_factory=dict)

    def on_ranks(self, part: slice) -> tuple[State, int]:
        """The weights at the end, and the bytes of what our collectives moved on this rank."""
        net = model(self.gradient, dist.get_rank(), **self.rule)  # the first rank's weights win
        if self.by == "share":
            share_gradients(net)
        wrapped = DistributedDataParallel(net)
        if self.by == "hook":
            wrapped.register_comm_hook(ThinProducts(net), thin_products_hook)
        with counting() as moved:
            return self.train(wrapped, net, part), sum(moved)

    def alone(self) -> State:
        """One process on the joint batch."""
        net = model(self.gradient, **self.rule)
        return self.train(net, net, slice(None))

    def train(self, wrapped: nn.Module, net: nn.Module, part: slice) -> State:
        if self.trigger in ("step", "attach"):
            ordinary = [p for name, p in net.named_parameters() if self.trigger == "attach" or name[0] in "04"]
            optimizer = torch.optim.SGD(ordinary, lr=0.1)
        else:
            optimizer = ProjUNN(
                net.parameters(), lr=0.01, direction=None if self.trigger == "ProjUNN" else self.trigger, momentum=0.5
            )
        if self.trigger == "attach":
            attach(net, optimizer)
        for step in range(self.steps):
            loss_of(wrapped, batch(step)[part]).backward()
            if self.trigger == "step":
                projunn_step(net)
            optimizer.step()
            optimizer.zero_grad()
        return net.state_dict()


POWER = {"sampler": "power", "rank": 2, "variant": "D"}
SPECTRAL = {"direction": "spectral", "rank": 2, "lr": 0.1}
RUNS = {
    "ddp": Run("ddp", steps=STEPS),
    "ddp-power": Run("ddp", rule=POWER),
    "ddp-attach": Run("ddp", trigger="attach"),
    "ddp-optimiser": Run("ddp", trigger="rmsprop"),
    "hook": Run("hook", steps=STEPS),
    "hook-power": Run("hook", rule=POWER),
    "hook-column": Run("hook", rule={"sampler": "column"}),
    "hook-attach": Run("hook", trigger="attach"),
    "hook-optimiser": Run("hook", trigger="gradient"),
    "share": Run("share", steps=STEPS),
    "share-factored": Run("share", "factored", steps=STEPS),
    "share-factored-power": Run("share", "factored", rule=POWER),
    "share-column": Run("share", rule={"sampler": "column", "rank": 2}),
    "share-svd": Run("share", rule={"sampler": "svd"}),
    "share-attach": Run("share", trigger="attach"),
    "share-attach-factored": Run("share", "factored", trigger="attach"),
    "share-factored-optimiser": Run("share", "factored", trigger="gradient"),
    "share-plain": Run("share", trigger="gradient"),
    "share-rmsprop": Run("share", trigger="rmsprop"),
    "ddp-spectral-attach": Run("ddp", trigger="attach", rule=SPECTRAL),
    "hook-spectral": Run("hook", trigger="ProjUNN", rule=SPECTRAL),
    "share-spectral": Run("share", rule=SPECTRAL),
    "share-spectral-buffer": Run("share", rule=SPECTRAL | {"momentum": 0.9, "variant": "D"}),
    "share-spectral-attach": Run("share", trigger="attach", steps=STEPS, rule=SPECTRAL),
    "share-spectral-optimiser": Run("share", trigger="ProjUNN", rule=SPECTRAL | {"sampler": "power"}),
    "share-spectral-factored": Run("share", "factored", rule=SPECTRAL),
    "share-spectral-factored-attach": Run("share", "factored", trigger="attach", rule=SPECTRAL),
    "share-spectral-factored-buffer": Run("share", "factored", rule=SPECTRAL | {"momentum": 0.9, "sampler": "power"}),
}


@contextlib.contextmanager
def counting() -> Iterator[list[int]]:
    """The bytes of each all-reduce in Python; those of DistributedDataParallel itself are issued in C++."""
    real, moved = dist.all_reduce, []

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        moved.append(tensor.numel() * tensor.element_size())
        return real(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        yield moved
    finally:
        dist.all_reduce = real


def trained(part: slice) -> Any:
    return {name: run.on_ranks(part) for name, run in RUNS.items()}


def dense_bytes(part: slice) -> int:
    """Of one step of DistributedDataParallel, by the hook of torch that does as it does without one."""
    net = model()
    wrapped = DistributedDataParallel(net)
    wrapped.register_comm_hook(None, allreduce_hook)
    with counting() as moved:
        loss_of(wrapped, batch(0)[part]).backward()
    return sum(moved)


def every_layer(part: slice) -> Any:
    """Two steps of each layer, against a rank that trains by itself on all rows."""
    mine = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    return {
        entry.name: [_two_steps(entry, variant, *where) for where in ((None, part), (mine, slice(None)))]
        for entry, variant in zip(ENTRIES, "DT" * len(ENTRIES), strict=False)
    }


def _two_steps(entry: Entry, variant: str, group: dist.ProcessGroup | None, part: slice) -> State:
    torch.manual_seed(0)
    net = entry.make(torch.float64, update=UpdateRule(variant, lr=0.1, direction="gradient"))
    share_gradients(net, group)
    for seed in range(2):
        x = entry.input(torch.float64, seed)
        x = x.unsqueeze(1) if entry.name.startswith("graph") else x  # a batch of graphs, in the place of nodes
        x = x[:, part] if entry.name.startswith(("rnn", "ssm", "words", "attention")) else x[part]
        (state_twice(net, x) - 0.3).abs().square().mean().backward()
        projunn_step(net)
    return {weight.name: weight.matrix.clone() for weight in unitary_weights(net)}


def accumulated(part: slice) -> Any:
    """Two micro-batches a step, the first without synchronisation, by an attached optimiser."""
    states = {}
    for by, gradient in (("share", "dense"), ("share", "factored"), ("hook", "dense")):
        net = model(gradient, rank=8)
        if by == "share":
            share_gradients(net)
        wrapped, optimizer = DistributedDataParallel(net), torch.optim.SGD(net.parameters(), lr=0.1)
        if by == "hook":
            wrapped.register_comm_hook(ThinProducts(net), thin_products_hook)
        attach(net, optimizer)
        for step in range(5):
            x = batch(step)[part]
            with wrapped.no_sync():
                loss_of(wrapped, x[:1]).backward()
            loss_of(wrapped, x[1:]).backward()
            optimizer.step()
            optimizer.zero_grad()
        states[f"{by}-{gradient}"] = net.state_dict()
    return states


def uneven(part: slice) -> Any:
    """All rows of a batch but one lie on the first rank, one on the second, none on others; at last none has any."""
    rank, world = dist.get_rank(), dist.get_world_size()
    rows = [slice(1, None), slice(1), *[slice(0)] * world][rank]
    states = {}
    for gradient in ("dense", "factored"):
        net = model(gradient)
        share_gradients(net)
        wrapped = DistributedDataParallel(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        attach(net, optimizer)
        for step in range(5):
            x = batch(step)[rows]
            ((wrapped(x) - x[:, :3].sin()).square().sum() * world / (ROWS * 3)).backward()
            optimizer.step()
            optimizer.zero_grad()
        projunn_step(net)
        states[gradient] = net.state_dict()
    return states


def joined(part: slice) -> Any:
    """Within ``Join``, the last rank runs out of batches two steps before the others."""
    net = model()
    wrapped = DistributedDataParallel(net)
    wrapped.register_comm_hook(ThinProducts(net), thin_products_hook)
    ordinary = torch.optim.SGD([p for name, p in net.named_parameters() if name[0] in "04"], lr=0.1)
    with Join([wrapped]):
        for step in range(3 if dist.get_rank() == dist.get_world_size() - 1 else 5):
            loss_of(wrapped, batch(step)[part]).backward()
            projunn_step(net)
            ordinary.step()
            ordinary.zero_grad()
    return net.state_dict()


def unused(part: slice) -> Any:
    """The first rank leaves a weight out and has two batches, then it alone has one, then none uses that weight."""
    states = {}
    for gradient in ("dense", "factored"):
        net = model(gradient, rank=N)  # of a sum of samples as of a sample of the sum
        share_gradients(net)
        for step in range(3):
            backward_leaving_out(net, step, dist.get_rank(), part)
            projunn_step(net)
        states[gradient] = net.state_dict()
    return states


def backward_leaving_out(net: nn.Sequential, step: int, rank: int, part: slice, share: float = 1.0) -> None:
    """The passes of one rank in one step of :func:`unused`, of losses times a share."""
    first = rank == 0
    skips, batches = ((first, 2 if first else 1), (False, 1 if first else 0), (True, 1))[step]
    runs = nn.Sequential(*(layer for i, layer in enumerate(net) if not (skips and i == 3)))
    for seed in range(batches):
        (share * loss_of(runs, batch(seed)[part])).backward()


def unused_under_ddp(part: slice) -> Any:
    """As a whole the same by DistributedDataParallel, with the hook: one rank leaves a weight out."""
    net = model()
    wrapped = DistributedDataParallel(_Skipping(net), find_unused_parameters=True)
    wrapped.register_comm_hook(ThinProducts(wrapped.module), thin_products_hook)
    for step in range(3):
        wrapped.module.skips = dist.get_rank() == 0 and step == 1
        loss_of(wrapped, batch(step)[part]).backward()
        projunn_step(net)
    return net.state_dict()


class _Skipping(nn.Module):
    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net, self.skips = net, False

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.net):
            x = x if self.skips and i == 3 else layer(x)
        return x


def broken(part: slice) -> Any:
    """A NaN on the last rank, for each trigger: what all ranks say, and whether a unitary weight has changed."""
    spoilt = math.nan if dist.get_rank() == dist.get_world_size() - 1 else 1
    found = []
    for gradient, trigger, nonfinite in product(("dense", "factored"), ("step", "gradient"), ("raise", "skip")):
        net = model(gradient, nonfinite=nonfinite)
        share_gradients(net)
        before = {weight.name: weight.matrix.clone() for weight in unitary_weights(net)}
        take = partial(projunn_step, net) if trigger == "step" else ProjUNN(net.parameters(), direction="gradient").step
        loss_of(net, batch(0)[part] * spoilt).backward()
        message = _message(take)
        unchanged = all(torch.equal(weight.matrix, before[weight.name]) for weight in unitary_weights(net))
        found.append((nonfinite, message, unchanged))
    return found


def scaled(part: slice) -> Any:
    """An infinity in the unitary gradient of the last rank alone: ShardedGradScaler has all of them skip the step."""
    net = model()
    share_gradients(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(net, optimizer)
    scaler = ShardedGradScaler(device="cpu", init_scale=4.0)
    for step in range(2):
        scaler.scale(loss_of(net, batch(step)[part])).backward()
        if step == 0 and dist.get_rank() == dist.get_world_size() - 1:
            net[1].weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return {weight.name: weight.matrix for weight in unitary_weights(net)}


def clipped(part: slice) -> Any:
    """Gradients as the hook leaves them have the same norm on all ranks."""
    net = model(rank=2)
    wrapped = DistributedDataParallel(net)
    wrapped.register_comm_hook(ThinProducts(net), thin_products_hook)
    loss_of(wrapped, batch(0)[part]).backward()
    return nn.utils.clip_grad_norm_(net.parameters(), 1e-3)


def sharded(part: slice) -> Any:
    """Ordinary parameters by ``fully_shard``, unitary ones whole on each rank."""
    mesh, states = init_device_mesh("cpu", (dist.get_world_size(),)), {}
    for gradient in ("dense", "factored"):
        net = model(gradient)
        share_gradients(net)
        fully_shard(net, mesh=mesh, ignored_params={weight.parameter for weight in unitary_weights(net)})
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        attach(net, optimizer)
        for step in range(5):
            loss_of(net, batch(step)[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
        whole = {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in net.state_dict().items()}
        assert [n for n, p in net.named_parameters() if not hasattr(p, "placements")] == ["1.weight", "3.weight"]
        states[gradient] = whole
    return states


def refused(part: slice) -> Any:
    """What raises, with its message."""
    world, wrapped = dist.get_world_size(), DistributedDataParallel(model())
    split = fully_shard(model(), mesh=init_device_mesh("cpu", (world,)))
    flat, hidden = (
        FullyShardedDataParallel(model(), device_id=torch.device("cpu"), use_orig_params=whole)
        for whole in (True, False)
    )
    ahead = model()
    share_gradients(ahead)
    ahead[1].weight_count += dist.get_rank() == 0
    attempts = {
        "alone": lambda: loss_of(model("factored"), batch(0)).backward(),
        "wrapped": lambda: share_gradients(wrapped),
        "nothing": lambda: share_gradients(nn.Linear(2, 2)),
        "backward": lambda: attach(wrapped),
        "share_sharded": lambda: share_gradients(split),
        "ahead": lambda: projunn_step(ahead),
        "sharded": lambda: projunn_step(split),
        "flat": lambda: projunn_step(flat),
        "hidden": lambda: projunn_step(hidden),
    }
    for net in (split, flat, hidden, ahead):
        loss_of(net, batch(0)).backward()
    return {name: _message(attempt) for name, attempt in attempts.items()}


def _message(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "no error"


SCENARIOS: tuple[Callable[[slice], Any], ...] = (
    trained,
    dense_bytes,
    every_layer,
    accumulated,
    uneven,
    joined,
    unused,
    unused_under_ddp,
    broken,
    scaled,
    clipped,
    sharded,
    refused,
)


def work(rank: int, world: int, folder: Path) -> None:
    """One rank: runs every scenario and leaves a file. Where ranks wait for each other in vain, they say so."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=120))
    found = {scenario.__name__: scenario(slice(rank, None, world)) for scenario in SCENARIOS}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()

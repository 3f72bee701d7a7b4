"""The list of layers that every contract test runs over: a new layer is one more entry."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Proxy

from unitary_layers import (
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConv3d,
    OrthogonalConvRNNCell,
    OrthogonalConvTranspose2d,
    StiefelConv1d,
    StiefelConv2d,
    StiefelConvTranspose2d,
    UnitaryDevelopment,
    UnitaryGraphConv,
    UnitaryGroupConv,
    UnitaryLinear,
    UnitaryMultiheadAttention,
    UnitaryRNN,
    UnitaryRNNCell,
    UnitarySSM,
    UnitaryWordRNN,
    UpdateRule,
    projunn_step,
)
from unitary_layers.robust import ReflectBlock
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights
from unitary_layers.training.owners import weights_of
from unitary_layers.training.weight import UnitaryWeight

N, BATCH, STEPS = 8, 4, 3
RING = [[1, 2, 0], [2, 0, 1]]  # moves on the group of three turns
POWER = UpdateRule(sampler="power", rank=2, lr=0.3)  # the rule with the most state


@dataclass(frozen=True)
class Entry:
    """A layer of the contract.

    Attributes:
        name: of the test case.
        build: makes it; takes ``device``, ``dtype`` and ``update``.
        shape: of its input.
        is_complex: whether it takes the complex counterpart of a dtype.
    """

    name: str
    build: Callable[..., nn.Module]
    shape: tuple[int, ...]
    is_complex: bool = False

    @property
    def factored(self) -> bool:
        """Whether gradients of its unitary weights are sampled in backward, and kept by their factors."""
        return self.name.endswith("factored") or "factored-" in self.name

    def make(
        self, dtype: torch.dtype = torch.float32, device: str | None = None, update: UpdateRule | None = None
    ) -> nn.Module:
        """The layer with real or complex parameters of this precision."""
        return self.build(dtype=self.of(dtype), device=device, update=update or UpdateRule(lr=0.3))

    def input(self, dtype: torch.dtype = torch.float32, seed: int = 5) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.shape, dtype=self.of(torch.float32), generator=generator).to(self.of(dtype))

    def of(self, dtype: torch.dtype) -> torch.dtype:
        if not self.is_complex:
            return dtype
        return torch.complex128 if dtype == torch.float64 else torch.complex64


def sequential(**options: Any) -> nn.Module:
    dd = {k: v for k, v in options.items() if k != "update"}
    return nn.Sequential(
        nn.Linear(5, N, **dd), nn.Tanh(), UnitaryLinear(N, N, **options), nn.Tanh(), UnitaryLinear(N, 3, **options)
    )


def recurrent(**fixed: Any) -> Callable[..., nn.Module]:
    return lambda **options: UnitaryRNN(5, N, **fixed, **options)


def last_state(**options: Any) -> nn.Module:
    """A linear layer with few features, which takes Note [Responses to impulses]."""
    return UnitaryRNN(1, N, nonlinearity="identity", return_sequence=False, gradient="factored", **options)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, as the layers take it: one input, one output."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = UnitaryMultiheadAttention(N, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]  # with weights: torch's kernel without them takes no vmap and no jvp


class OfComplexPath(UnitaryDevelopment):
    """A development that reads real and imaginary parts as features."""

    def forward(self, x: Tensor) -> Tensor:
        is_complex = isinstance(x, Tensor) and x.is_complex() and x.ndim > 0
        return super().forward(torch.view_as_real(x.resolve_conj()).flatten(-2) if is_complex else x)


class OnRing(UnitaryGraphConv):
    """A convolution on a ring of nodes, as the layers take it: one input."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return self.recorded(x)
        if not isinstance(x, Tensor) or x.ndim < 2:
            return super().forward(x, torch.empty(2, 0, dtype=torch.int64))
        nodes = torch.arange(x.size(-2), device=x.device)
        ring = torch.stack([nodes, nodes.roll(1)])
        return super().forward(x, torch.cat([ring, ring.flip(0)], 1))


class Sentence(nn.Module):
    """A sentence of all words, one after another; the input is the state before it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = UnitaryWordRNN(STEPS, N, init="haar", **options)

    def forward(self, h: Tensor) -> Tensor:
        batch = h.size(1) if isinstance(h, Tensor) and h.dim() > 1 else BATCH
        ids = torch.arange(STEPS, device=getattr(h, "device", None)).unsqueeze(1).expand(-1, batch)
        return self.layer(ids, h)[0]


ENTRIES = (
    Entry("linear", lambda **o: UnitaryLinear(N, N, **o), (BATCH, N)),
    Entry("linear-without-bias", lambda **o: UnitaryLinear(N, N, bias=False, **o), (BATCH, N)),
    Entry("linear-wide", lambda **o: UnitaryLinear(N, 5, **o), (BATCH, N)),
    Entry("linear-tall", lambda **o: UnitaryLinear(5, N, **o), (BATCH, 5)),
    Entry("linear-complex", lambda **o: UnitaryLinear(N, N, **o), (BATCH, N), is_complex=True),
    Entry("rnn-tanh", recurrent(), (STEPS, BATCH, 5)),
    Entry("rnn-relu", recurrent(nonlinearity="relu", init="haar"), (STEPS, BATCH, 5)),
    Entry("rnn-modrelu", recurrent(nonlinearity="modrelu"), (STEPS, BATCH, 5)),
    Entry("rnn-module", recurrent(nonlinearity=nn.Softsign(), bias=False), (STEPS, BATCH, 5)),
    Entry("rnn-two-layers-both-ways", recurrent(num_layers=2, bidirectional=True), (STEPS, BATCH, 5)),
    Entry("rnn-complex", recurrent(nonlinearity="modrelu"), (STEPS, BATCH, 5), is_complex=True),
    Entry("cell", lambda **o: UnitaryRNNCell(5, N, **o), (BATCH, 5)),
    Entry("cell-complex", lambda **o: UnitaryRNNCell(5, N, nonlinearity="modrelu", **o), (BATCH, 5), is_complex=True),
    Entry("ssm", lambda **o: UnitarySSM(5, N, skip=False, **o), (STEPS, BATCH, 5)),
    Entry("words", Sentence, (1, BATCH, N)),
    Entry("conv-full", lambda **o: OrthogonalConv2d(N, N, input_size=(3, 4), **o), (BATCH, N, 3, 4)),
    Entry("conv-full-fft", lambda **o: OrthogonalConv2d(N, N, input_size=4, transform="fft", **o), (BATCH, N, 4, 4)),
    Entry("conv-full-strided", lambda **o: OrthogonalConv2d(2, N, stride=2, input_size=6, **o), (BATCH, 2, 6, 6)),
    Entry("conv-local", lambda **o: OrthogonalConv2d(N, N, 3, **o), (BATCH, N, 4, 5)),
    Entry("conv-1d", lambda **o: OrthogonalConv1d(N, N, input_size=5, bias=False, **o), (BATCH, N, 5)),
    Entry("conv-transposed", lambda **o: OrthogonalConvTranspose2d(N, 4, 3, stride=(1, 2), **o), (BATCH, N, 2, 3)),
    Entry("conv-3d-local", lambda **o: OrthogonalConv3d(N, N, 2, **o), (BATCH, N, 2, 3, 4)),
    Entry("development", lambda **o: UnitaryDevelopment(2, N, **o), (BATCH, STEPS, 2)),
    Entry(
        "development-complex",
        lambda **o: OfComplexPath(2, N, return_sequence=True, **o),
        (BATCH, STEPS, 1),
        is_complex=True,
    ),
    Entry("graph", lambda **o: OnRing(5, N, learn_time=True, **o), (BATCH, 5)),
    Entry(
        "graph-complex-factored",
        lambda **o: OnRing(N, N, per_channel=True, gradient="factored", **o),
        (BATCH, N),
        is_complex=True,
    ),
    Entry("group", lambda **o: UnitaryGroupConv(5, N, RING, **o), (BATCH, 5, STEPS)),
    Entry("group-complex", lambda **o: UnitaryGroupConv(N, 3, RING, **o), (BATCH, N, STEPS, 2), is_complex=True),
    Entry("cell-conv", lambda **o: OrthogonalConvRNNCell(2, 4, 2, **o), (BATCH, 2, 3, 4)),
    Entry("attention", SelfAttention, (STEPS, BATCH, N)),
    Entry("attention-born", lambda **o: SelfAttention(score="born", **o), (STEPS, BATCH, N)),
    Entry("stiefel", lambda **o: StiefelConv2d(5, N, 3, padding=1, **o), (BATCH, 5, 4, 3)),
    Entry(
        "stiefel-grouped",
        lambda **o: StiefelConv2d(4, N, 2, 2, 1, groups=2, padding_mode="reflect", normalize=True, **o),
        (BATCH, 4, 4, 3),
    ),
    Entry("stiefel-complex", lambda **o: StiefelConv1d(3, N, 2, bias=False, **o), (BATCH, 3, 4), is_complex=True),
    Entry("stiefel-transposed", lambda **o: StiefelConvTranspose2d(N, 5, 2, stride=2, **o), (BATCH, N, 2, 3)),
    Entry("reflect", lambda **o: ReflectBlock(OrthogonalConv2d(4, 3, 3, **o)), (BATCH, 4, 4, 3)),
    Entry("sequential", sequential, (BATCH, 5)),
    Entry("linear-complex-quantised", lambda **o: UnitaryLinear(N, N, weight_bits=4, **o), (BATCH, N), is_complex=True),
    Entry(
        "rnn-quantised-factored",
        recurrent(nonlinearity="modrelu", gradient="factored", weight_bits=3, weight_scale="mse"),
        (STEPS, BATCH, 5),
    ),
    Entry("linear-factored", lambda **o: UnitaryLinear(N, N, gradient="factored", **o), (BATCH, N)),
    Entry("linear-wide-factored", lambda **o: UnitaryLinear(N, 5, gradient="factored", **o), (BATCH, N)),
    Entry(
        "linear-complex-factored",
        lambda **o: UnitaryLinear(N, N, gradient="factored", **o),
        (BATCH, N),
        is_complex=True,
    ),
    Entry("rnn-factored", recurrent(nonlinearity="modrelu", gradient="factored"), (STEPS, BATCH, 5)),
    Entry("rnn-module-factored", recurrent(nonlinearity=nn.Softsign(), gradient="factored"), (STEPS, BATCH, 5)),
    Entry("rnn-last-state-factored", last_state, (STEPS, BATCH, 1)),
    Entry("cell-factored", lambda **o: UnitaryRNNCell(5, N, gradient="factored", **o), (BATCH, 5)),
    Entry(
        "conv-factored", lambda **o: OrthogonalConv2d(N, N, input_size=4, gradient="factored", **o), (BATCH, N, 4, 4)
    ),
    Entry(
        "conv-factored-fft",
        lambda **o: OrthogonalConv2d(2, N, stride=2, input_size=6, transform="fft", gradient="factored", **o),
        (BATCH, 2, 6, 6),
    ),
)
REAL = tuple(entry for entry in ENTRIES if not entry.is_complex)

every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
every_real_entry = pytest.mark.parametrize("entry", REAL, ids=lambda e: e.name)
every_complex_entry = pytest.mark.parametrize("entry", [e for e in ENTRIES if e.is_complex], ids=lambda e: e.name)


def output_of(module: nn.Module, x: Tensor) -> Tensor:
    """The output of a layer, joined with the final states of a recurrent one."""
    result = module(x)
    if not isinstance(result, tuple):
        return result
    output, h_n = result
    if h_n.is_complex() and not output.is_complex():
        h_n = torch.view_as_real(h_n).to(output.dtype)
    return torch.cat([output.flatten(), h_n.flatten()])


def state_twice(module: nn.Module, x: Tensor) -> Tensor:
    """Output of the module on x; a cell takes a second step, since only then its recurrent matrix counts."""
    return module(x, module(x)) if isinstance(module, (UnitaryRNNCell, OrthogonalConvRNNCell)) else output_of(module, x)


def loss_of(module: nn.Module, x: Tensor) -> Tensor:
    """Mean squared distance to a target in the reach of the layer."""
    y = state_twice(module, x)
    target = torch.randn(
        y.shape, dtype=torch.promote_types(y.dtype, torch.float32), generator=torch.Generator().manual_seed(7)
    )
    return (y - target.to(y.device) / 2).abs().square().mean()


def step(module: nn.Module, x: Tensor, lr: float = 0.02) -> float:
    """Backward, a step of the unitary weights, and plain gradient descent on all others."""
    loss = loss_of(module, x)
    loss.backward()
    projunn_step(module)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad and p.grad is not None:
                p -= lr * p.grad
    module.zero_grad()
    return float(loss.detach())


def gradient_of(weight: UnitaryWeight) -> Tensor | None:
    """What backward has left of the weight's gradient: the stored tensor, or a factor of it."""
    if weight.collected is None:
        return weight.parameter.grad
    return None if weight.collected.low_rank is None else weight.collected.low_rank.left


def spoil(weight: UnitaryWeight, value: float) -> None:
    """Writes a value into the gradient."""
    gradient = gradient_of(weight)
    (gradient if weight.collected is None else gradient.mT).view(-1)[3] = value  # factors are k-major


def matrices(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the unitary matrices by name."""
    return {weight.name: weight.matrix.clone() for weight in unitary_weights(module)}


def same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts (or dicts of matrices) are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict, which itself shares memory with the module."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Asserts that what runs in it leaves parameters and buffers as they are."""
    before = snapshot(module)
    yield
    assert same_tensors(snapshot(module), before)


def assert_trains(module: nn.Module, entry: Entry, dtype: torch.dtype = torch.float32) -> None:
    """The unitary weights are known as such, move, and stay unitary."""
    before = matrices(module)
    assert before
    known = weights_of(module.parameters())  # as an optimiser sees them
    assert {id(p) for p in known} == {id(weight.parameter) for weight in unitary_weights(module)}
    for _ in range(3):
        step(module, entry.input(dtype))
    assert all(not torch.equal(after, before[name]) for name, after in matrices(module).items())
    assert_unitary(module)


def trained(entry: Entry) -> nn.Module:
    """A layer after three steps, with counters and factors that are not zero."""
    module = entry.make(update=POWER)
    for _ in range(3):
        step(module, entry.input())
    return module

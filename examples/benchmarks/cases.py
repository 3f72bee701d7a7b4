"""What is timed: the update alone, and a training step of linear, recurrent and convolutional layers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import peers
import torch
from timing import interleaved, peak_bytes
from torch import Tensor, nn

from unitary_layers import OrthogonalConv2d, UnitaryLinear, UnitaryRNN, UpdateRule

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        case: what is done.
        size: n, or the shape.
        name: by whom.
        milliseconds: median.
        ratio: to the base of the case.
        base: what that is.
    """

    case: str
    size: str
    name: str
    milliseconds: float
    ratio: float
    base: str


def rows_of(case: str, size: str, works: dict[str, Work], repetitions: int, base: str) -> Iterator[Row]:
    """Times the works of a case; ratios are to ``base``, one of them."""
    for name, seconds in (times := interleaved(works, repetitions)).items():
        yield Row(case, size, name, seconds * 1e3, seconds / times[base], base)


def update(n: int, repetitions: int, dtype: torch.dtype = torch.float32, with_peers: bool = True) -> Iterator[Row]:
    """The update alone from a dense gradient, against SGD, peers, and the floor of bytes it must move.

    The floor: the gradient read twice, the weight read once for both products, read again and written.
    """
    gradient = torch.randn(n, n, dtype=dtype)
    source, target = torch.randn(n, n, dtype=dtype), torch.empty(n, n, dtype=dtype)
    works = {"copy": lambda: target.copy_(source), "sgd": _sgd(n, gradient)}
    works |= {f"projUNN k={k}": _projunn(n, k, gradient) for k in (1, 4, 16)}
    works |= peers.updates(n, gradient) if with_peers and not dtype.is_complex else {}
    times = interleaved(works, repetitions)
    times["floor"] = times.pop("copy") * 5 / 2  # five passes; a copy is two
    case = "update, complex" if dtype.is_complex else "update"
    for name, seconds in times.items():
        yield Row(case, str(n), name, seconds * 1e3, seconds / times["projUNN k=1"], "projUNN k=1")


def many(count: int, n: int, repetitions: int) -> Iterator[Row]:
    """One step of a model with many unitary weights of one shape, against one such weight."""
    works = {}
    for number in (1, count):
        model = nn.Sequential(*(UnitaryLinear(n, n, bias=False) for _ in range(number)))
        works[f"{number} weights"] = _step_of(model, torch.randn(n, n))
    return rows_of("update", f"{count} x {n}", works, repetitions, "1 weights")


def linear(n: int, rows: int, repetitions: int, with_peers: bool = True) -> Iterator[Row]:
    """A training step of a linear layer: forward, backward, update."""
    x = torch.randn(rows, n, requires_grad=True)
    layers = {"nn.Linear": nn.Linear(n, n, bias=False)}
    layers |= {g: UnitaryLinear(n, n, bias=False, gradient=g) for g in ("dense", "factored")}
    layers |= peers.linears(n) if with_peers else {}
    return rows_of("linear", f"{n}, {rows} rows", _training(layers, x), repetitions, "nn.Linear")


def recurrent(width: int, repetitions: int, steps: int = 784, batch: int = 128) -> Iterator[Row]:
    """A training step of a recurrent layer with ReLU over a sequence of scalars; the loss looks at the last state."""
    x = torch.randn(steps, batch, 1)
    layers = {"nn.RNN": nn.RNN(1, width, nonlinearity="relu")}
    layers |= {g: UnitaryRNN(1, width, nonlinearity="relu", gradient=g) for g in ("dense", "factored")}
    last = {name: _Last(layer) for name, layer in layers.items()}
    return rows_of("rnn", f"{width}, T = {steps}", _training(last, x), repetitions, "nn.RNN")


def convolution(channels: int, size: int, repetitions: int, batch: int = 64, with_peers: bool = True) -> Iterator[Row]:
    """A training step of a convolution."""
    x = torch.randn(batch, channels, size, size, requires_grad=True)
    layers = {"nn.Conv2d 3 x 3": nn.Conv2d(channels, channels, 3, padding=1, bias=False)}
    for gradient in ("dense", "factored"):
        layers[gradient] = OrthogonalConv2d(channels, channels, input_size=size, bias=False, gradient=gradient)
    layers["local 3 x 3"] = OrthogonalConv2d(channels, channels, 3, bias=False)
    layers |= peers.convolutions(channels, size) if with_peers else {}
    shape = f"{channels} x {size} x {size}"
    return rows_of("conv", shape, _training(layers, x), repetitions, "nn.Conv2d 3 x 3")


def memory(n: int, rows: int) -> Iterator[Row]:
    """The most bytes of a training step of a linear layer, in n x n matrices."""
    x = torch.randn(rows, n, requires_grad=True)
    layers = {"nn.Linear": nn.Linear(n, n, bias=False)}
    layers |= {g: UnitaryLinear(n, n, bias=False, gradient=g) for g in ("dense", "factored")}
    for name, work in _training(layers, x).items():
        matrices = peak_bytes(work) / (4 * n * n)
        yield Row("memory", f"{n}, {rows} rows", name, float("nan"), matrices, "one n x n matrix")


class _Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][-1]


def _training(layers: dict[str, nn.Module], x: Tensor) -> dict[str, Work]:
    return {name: _training_step(layer, x) for name, layer in layers.items()}


def _training_step(layer: nn.Module, x: Tensor) -> Work:
    unitary = getattr(layer, "layer", layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-6)

    def work() -> None:
        layer(x).sum().backward()
        if hasattr(unitary, "projunn_step"):
            unitary.projunn_step()
        optimizer.step()
        optimizer.zero_grad()
        x.grad = None

    return work


def _sgd(n: int, gradient: Tensor) -> Work:
    weight = nn.Parameter(torch.randn_like(gradient))
    weight.grad = gradient.clone()
    return torch.optim.SGD([weight], lr=1e-6).step


def _projunn(n: int, rank: int, gradient: Tensor) -> Work:
    rule = UpdateRule(rank=rank, retract_every=0)
    layer = UnitaryLinear(n, n, bias=False, init="identity", dtype=gradient.dtype, update=rule)
    return _step_of(nn.Sequential(layer), torch.view_as_real(gradient) if gradient.is_complex() else gradient)


def _step_of(model: nn.Sequential, gradient: Tensor) -> Work:
    from unitary_layers import projunn_step

    def work() -> None:
        for layer in model:
            layer.weight.grad = gradient
        projunn_step(model)

    return work

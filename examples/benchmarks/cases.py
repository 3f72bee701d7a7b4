"""What is timed: the update alone, and a training step of linear, recurrent and convolutional layers."""

import copy
import math
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import peers
import timm
import torch
from timing import interleaved, peak_bytes
from torch import Tensor, nn
from tqdm import tqdm

from unitary_layers import OrthogonalConv2d, StiefelConv2d, UnitaryLinear, UnitaryRNN, UpdateRule, projunn_step

sys.path.insert(0, str(Path(__file__).parents[1]))

import copying_memory
from common.training import Trainer

PAPER = UpdateRule(direction="gradient")  # rank 1, one step against the sampled gradient
# A rank by size, and the momentum that attach() would keep in the optimiser. So short that it goes nowhere: the sums
# that are minimised here have no least value.
DEFAULT = UpdateRule(momentum=0.9, lr=1e-6)

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
    works |= {f"projUNN k={k}": _projunn(n, replace(PAPER, rank=k), gradient) for k in (1, 4, 16)}
    works["default"] = _projunn(n, DEFAULT, gradient)
    works |= peers.updates(n, gradient) if with_peers and not dtype.is_complex else {}
    times = interleaved(works, repetitions)
    times["floor"] = times.pop("copy") * 5 / 2  # five passes; a copy is two
    case = "update, complex" if dtype.is_complex else "update"
    for name, seconds in times.items():
        yield Row(case, str(n), name, seconds * 1e3, seconds / times["projUNN k=1"], "projUNN k=1")


def many(count: int, n: int, repetitions: int, rule: UpdateRule = PAPER) -> Iterator[Row]:
    """One step of a model with many unitary weights of one shape, against one such weight."""
    works = {}
    for number in (1, count):
        model = nn.Sequential(*(UnitaryLinear(n, n, bias=False, update=rule) for _ in range(number)))
        works[f"{number} weights"] = _step_of(model, torch.randn(n, n))
    case = "update" if rule.direction == "gradient" else "update, default"
    return rows_of(case, f"{count} x {n}", works, repetitions, "1 weights")


def linear(n: int, rows: int, repetitions: int, with_peers: bool = True) -> Iterator[Row]:
    """A training step of a linear layer: forward, backward, update."""
    x = torch.randn(rows, n, requires_grad=True)
    layers = {"nn.Linear": nn.Linear(n, n, bias=False)} | _ways(partial(UnitaryLinear, n, n, bias=False))
    layers |= peers.linears(n) if with_peers else {}
    works = _training(layers, x)
    works["nn.Linear, AdamW"] = _training_step(nn.Linear(n, n, bias=False), x, torch.optim.AdamW)
    return rows_of("linear", f"{n}, {rows} rows", works, repetitions, "nn.Linear")


def recurrent(width: int, repetitions: int, steps: int = 784, batch: int = 128) -> Iterator[Row]:
    """A training step of a recurrent layer with ReLU over a sequence of scalars; the loss looks at the last state."""
    x = torch.randn(steps, batch, 1)
    layers = {"nn.RNN": nn.RNN(1, width, nonlinearity="relu")}
    layers |= _ways(partial(UnitaryRNN, 1, width, nonlinearity="relu"))
    last = {name: _Last(layer) for name, layer in layers.items()}
    return rows_of("rnn", f"{width}, T = {steps}", _training(last, x), repetitions, "nn.RNN")


def last_state(width: int, repetitions: int, steps: int = 784, batch: int = 100) -> Iterator[Row]:
    """A training step of a linear recurrent layer over a sequence of scalars, of which only the last state is read."""
    x, layers = torch.randn(steps, batch, 1), {}
    for gradient in ("dense", "factored"):
        for name, every in (("all states", True), ("last state", False)):
            options = {"nonlinearity": "identity", "update": PAPER, "gradient": gradient, "return_sequence": every}
            layers[f"{name}, {gradient}"] = _Last(UnitaryRNN(1, width, **options))
    return rows_of("linear rnn", f"{width}, T = {steps}", _training(layers, x), repetitions, "all states, dense")


def convolution(channels: int, size: int, repetitions: int, batch: int = 64, with_peers: bool = True) -> Iterator[Row]:
    """A training step of a convolution."""
    x = torch.randn(batch, channels, size, size, requires_grad=True)
    layers = {"nn.Conv2d 3 x 3": nn.Conv2d(channels, channels, 3, padding=1, bias=False)}
    layers |= _ways(partial(OrthogonalConv2d, channels, channels, input_size=size, bias=False))
    for end, rule in {"": PAPER, ", default": DEFAULT}.items():
        for name, kind in {"local 3 x 3": OrthogonalConv2d, "orthonormal 3 x 3": StiefelConv2d}.items():
            layers[name + end] = kind(channels, channels, 3, padding=1, bias=False, update=rule)
    layers |= peers.convolutions(channels, size) if with_peers else {}
    shape = f"{channels} x {size} x {size}"
    return rows_of("conv", shape, _training(layers, x), repetitions, "nn.Conv2d 3 x 3")


def network(batch: int, repetitions: int, **options: object) -> Iterator[Row]:
    """A training step of the paper's ResNet-9 layout at 32 x 32, against the same network of 3 x 3 convolutions."""
    x = torch.randn(batch, 3, 32, 32, requires_grad=True)
    networks = {"nn.Conv2d 3 x 3": timm.create_model("orthoresnet_projunn", conv_layer=_conv3x3, **options)}
    # Haar matrices of 512 channels at each frequency take half a minute to draw
    networks |= _ways(partial(timm.create_model, "orthoresnet_projunn", init="identity", num_classes=10, **options))
    return rows_of("resnet9", f"{batch} x 3 x 32 x 32", _training(networks, x), repetitions, "nn.Conv2d 3 x 3")


def compiled(n: int, rows: int, repetitions: int) -> Iterator[Row]:
    """A training step of a linear layer whose forward and backward ``torch.compile`` has made."""
    x = torch.randn(rows, n, requires_grad=True)
    layers = {"nn.Linear": nn.Linear(n, n, bias=False), "dense": UnitaryLinear(n, n, bias=False, update=PAPER)}
    layers |= {f"{name}, compiled": torch.compile(copy.deepcopy(layer)) for name, layer in layers.items()}
    return rows_of("compile", f"{n}, {rows} rows", _training(layers, x), repetitions, "nn.Linear, compiled")


def time_to_loss(delay: int, width: int, loss: float, most: int = 1500, seed: int = 0) -> Iterator[Row]:
    """Seconds of training until copying memory falls to a loss, the mean of ten steps; the two take turns by steps."""
    options = f"--delay {delay} --width {width} --seed {seed} --steps {most} --schedule cosine --log-every {most}"
    trainers, last = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for gradient in ("dense", "factored"):
            arguments = f"{options} --gradient {gradient} --out".split()
            trainers[gradient] = Trainer(*copying_memory.setup([*arguments, f"{folder}/{gradient}"]))
            last[gradient] = deque([math.inf] * 10, maxlen=10)
        with tqdm(total=most, desc=f"copying, delay {delay}", leave=False) as bar:
            for _ in range(most):
                running = [name for name in trainers if sum(last[name]) / 10 > loss]
                for name in running:
                    last[name].append(trainers[name].train_step()[0])
                bar.update()
                bar.set_postfix({name: f"{losses[-1]:.2e}" for name, losses in last.items()})
                if not running:
                    break
    reached = {name: sum(last[name]) / 10 <= loss for name in trainers}
    for name, trainer in trainers.items():
        ratio = trainer.seconds / trainers["dense"].seconds if all(reached.values()) else math.nan
        label = f"{name}, {trainer.step} steps" + ("" if reached[name] else ", not reached")
        yield Row(f"copying to loss {loss:g}", f"T = {delay}", label, trainer.seconds * 1e3, ratio, "dense")


def memory(n: int, rows: int) -> Iterator[Row]:
    """The most bytes of a training step of a linear layer, in n x n matrices."""
    x = torch.randn(rows, n, requires_grad=True)
    layers = {"nn.Linear": nn.Linear(n, n, bias=False)} | _ways(partial(UnitaryLinear, n, n, bias=False))
    for name, work in _training(layers, x).items():
        matrices = peak_bytes(work) / (4 * n * n)
        yield Row("memory", f"{n}, {rows} rows", name, float("nan"), matrices, "one n x n matrix")


class _Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        output = self.layer(x)[0]
        return output[-1] if getattr(self.layer, "return_sequence", True) else output


def _conv3x3(
    in_channels: int, out_channels: int, _taps: int | None, stride: int, *, bias: bool, **_: object
) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)


def _ways(make: Callable[..., nn.Module]) -> dict[str, nn.Module]:
    """A layer by the paper's rule and by the default one, with dense and with factored gradients."""
    rules = {"": PAPER, ", default": DEFAULT}
    return {g + name: make(update=r, gradient=g) for name, r in rules.items() for g in ("dense", "factored")}


def _training(layers: dict[str, nn.Module], x: Tensor) -> dict[str, Work]:
    return {name: _training_step(layer, x) for name, layer in layers.items()}


def _training_step(layer: nn.Module, x: Tensor, optimizer_of: type[torch.optim.Optimizer] = torch.optim.SGD) -> Work:
    unitary = getattr(layer, "layer", layer)
    optimizer = optimizer_of(layer.parameters(), lr=1e-6)

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


def _projunn(n: int, rule: UpdateRule, gradient: Tensor) -> Work:
    rule = replace(rule, retract_every=0)
    layer = UnitaryLinear(n, n, bias=False, init="identity", dtype=gradient.dtype, update=rule)
    return _step_of(nn.Sequential(layer), torch.view_as_real(gradient) if gradient.is_complex() else gradient)


def _step_of(model: nn.Sequential, gradient: Tensor) -> Work:
    def work() -> None:
        for layer in model:
            layer.weight.grad = gradient
        projunn_step(model)

    return work

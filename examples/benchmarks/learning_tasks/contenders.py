"""Contenders: ways to move the unitary weights of a model, each beside AdamW for everything else.

Peers own their weights and lend them to the model (`torch.func.functional_call`), so that all contenders share its
code and its start, and ours does not watch over what a peer does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import orthogonal
from torch.optim import Optimizer

from unitary_layers import ProjUNN, UpdateRule, attach, unitary_weights
from unitary_layers.init import cayley_, identity_, timescales_
from unitary_layers.linalg import unitarity_error

from .optimizers import Muon, adamw, nesterov
from .task import Task

Weights = dict[str, Tensor]


class Learner:
    """A model with the optimisers of a contender.

    Args:
        model: with unitary layers.
        optimizers: of all parameters.
        lent: gives the unitary matrices that the model is to use, by the names of its weights; None for its own.
    """

    def __init__(
        self, model: nn.Module, optimizers: Iterable[Optimizer], lent: Callable[[], Weights] | None = None
    ) -> None:
        self.model, self.optimizers, self.lent = model, list(optimizers), lent

    def __call__(self, x: Any) -> Tensor:
        if self.lent is None:
            return self.model(x)
        lent = {name: matrix.reshape(self.model.get_parameter(name).shape) for name, matrix in self.lent().items()}
        return functional_call(self.model, lent, (x,))

    def learn(self, task: Task, generator: Generator) -> float:
        """A training step; returns the loss before it, and changes nothing where that is not finite."""
        x, y = task.batch(generator)
        loss = task.loss(self(x), y)
        if math.isfinite(value := loss.item()):
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return value

    @torch.no_grad()
    def error(self) -> float:
        """The largest `|W^H W - I|_F` of the weights."""
        own = {weight.name: weight.matrix for weight in unitary_weights(self.model)}
        weights = own if self.lent is None else self.lent()
        return max((float(unitarity_error(w).max()) for w in weights.values()), default=math.nan)


class Contender(NamedTuple):
    """A way to learn.

    Attributes:
        make: builds the learner of a task at a rate.
        rates: to choose from; none where it has no place.
        recurrent_rates: the same for recurrent weights.
        needs: package without which there is none, or None.
    """

    make: Callable[[Task, float], Learner]
    rates: tuple[float, ...] = (1.0,)
    recurrent_rates: tuple[float, ...] = (1.0,)
    needs: str | None = None


def ours(task: Task, factor: float) -> Learner:
    """The default rule, its step length times a factor."""
    model = task.model()
    if factor != 1:
        for module in model.modules():
            if hasattr(module, "own_unitary_weights"):
                module.step_length *= factor
                module.update = UpdateRule()  # which looks at the length anew
    optimizer = adamw(model.parameters(), task.lr)
    attach(model, optimizer)
    return Learner(model, [optimizer])


def factored(task: Task, _rate: float) -> Learner:
    """The default rule on factored gradients, where the layer has them."""
    learner = ours(task, 1.0)
    for module in learner.model.modules():
        if hasattr(module, "own_unitary_weights"):
            module.gradient = "factored"
    return learner


def started(task: Task, _rate: float, filler: Callable[[Tensor], Tensor]) -> Learner:
    """The default rule from another start."""
    learner = ours(task, 1.0)
    for module in learner.model.modules():
        if hasattr(module, "own_unitary_weights"):
            module.reset_unitary(filler)
    return learner


def paper(task: Task, rate: float) -> Learner:
    """The rule of projUNN's paper: a step of rank 1 against the gradient; for recurrences divided as RMSprop does."""
    model = task.model()
    if task.recurrent:
        options = {"direction": "rmsprop", "unitary_lr_scale": rate / task.lr, "base": "adamw"}
        return Learner(model, [ProjUNN(model.parameters(), lr=task.lr, **options)])
    for module in model.modules():
        if hasattr(module, "own_unitary_weights"):
            module.update = UpdateRule(direction="gradient", rank=1, lr=rate)
    optimizer = adamw(model.parameters(), task.lr)
    attach(model, optimizer)
    return Learner(model, [optimizer])


def frozen(task: Task, _rate: float) -> Learner:
    """Unitary weights that stay as they start."""
    model = task.model()
    for weight in unitary_weights(model):
        weight.parameter.requires_grad_(False)
    return Learner(model, [adamw([p for p in model.parameters() if p.requires_grad], task.lr)])


def unconstrained(task: Task, rate: float, make: Callable[..., Optimizer] | None = None) -> Learner:
    """Weights without a constraint, from the same start, or the layers of torch where those are others."""
    make = adamw if make is None else make
    if task.plain is not None:
        model = task.plain()
        return Learner(model, [make(model.parameters(), rate)])
    model, start, rest = _split(task)
    points = {name: nn.Parameter(w) for name, w in start.items()}
    return Learner(model, [adamw(rest, task.lr), make(points.values(), rate)], lambda: points)


def gated(task: Task, rate: float, layer: Callable[[int, int], nn.Module]) -> Learner:
    """A gated recurrence of torch of the same width in the place of the unitary one, all of it at one rate."""
    model = task.model()
    model.layer = layer(model.layer.input_size, model.layer.hidden_size)
    return Learner(model, [adamw(model.parameters(), rate)])


def parametrized(task: Task, rate: float) -> Learner:
    """`parametrizations.orthogonal` by the Cayley map."""
    model, start, rest = _split(task)
    held = {name: _parametrized(w) for name, w in start.items()}
    skew = [p for module in held.values() for p in module.parameters()]
    return Learner(
        model, [adamw(rest, task.lr), adamw(skew, rate)], lambda: {name: m.weight for name, m in held.items()}
    )


def geoopt(task: Task, rate: float) -> Learner:
    """geoopt's Riemannian Adam on the Stiefel manifold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch.jit, about the package's own code
        from geoopt import EuclideanStiefel, ManifoldParameter
        from geoopt.optim import RiemannianAdam

    model, start, rest = _split(task)
    is_wide = {name: w.size(-2) < w.size(-1) for name, w in start.items()}  # which geoopt does not take
    points = {
        name: ManifoldParameter(w.mT.contiguous() if is_wide[name] else w, manifold=EuclideanStiefel())
        for name, w in start.items()
    }
    optimizers = [adamw(rest, task.lr), RiemannianAdam(points.values(), lr=rate)]

    def lent() -> Weights:
        plain = {name: point.as_subclass(Tensor) for name, point in points.items()}
        return {name: x.mT if is_wide[name] else x for name, x in plain.items()}

    return Learner(model, optimizers, lent)


def pogo(task: Task, rate: float) -> Learner:
    """POGO on VectorAdam."""
    from pogo import POGO
    from pogo.base import VectorAdam

    model, start, rest = _split(task)
    is_tall = {name: w.size(-2) > w.size(-1) for name, w in start.items()}  # which POGO does not take
    start = {name: w.mT.contiguous() if is_tall[name] else w for name, w in start.items()}
    points = {name: nn.Parameter(w.reshape(-1, *w.shape[-2:])) for name, w in start.items()}
    optimizers = [adamw(rest, task.lr), POGO(list(points.values()), VectorAdam(), lr=rate)]

    def lent() -> Weights:
        shaped = {name: point.view(start[name].shape) for name, point in points.items()}
        return {name: x.mT if is_tall[name] else x for name, x in shaped.items()}

    return Learner(model, optimizers, lent)


def muon(task: Task, rate: float) -> Learner:
    """Manifold Muon of full rank: the spectral direction without sampling, the slow twin of ours."""
    model, start, rest = _split(task)
    points = {name: nn.Parameter(w) for name, w in start.items()}
    return Learner(model, [adamw(rest, task.lr), Muon(points.values(), rate)], lambda: points)


def _split(task: Task) -> tuple[nn.Module, Weights, list[nn.Parameter]]:
    """A model, copies of its unitary matrices by the names of its weights, and its other parameters."""
    model = task.model()
    weights = list(unitary_weights(model))
    rest = [p for p in model.parameters() if all(p is not weight.parameter for weight in weights)]
    return model, {weight.name: weight.matrix.clone() for weight in weights}, rest


def _parametrized(start: Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(start)
    return orthogonal(module, "weight", orthogonal_map="cayley")  # whose first value is the start


CONTENDERS = {
    "unconstrained": Contender(unconstrained, (3e-4, 1e-3, 3e-3), (3e-4, 1e-3, 3e-3)),
    "nesterov": Contender(partial(unconstrained, make=nesterov), (0.01, 0.03, 0.1), (0.003, 0.01, 0.03)),
    "frozen": Contender(frozen),
    "parametrizations": Contender(parametrized, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    "geoopt": Contender(geoopt, (0.03, 0.1, 0.3, 1.0, 3.0), (0.003, 0.01, 0.03, 0.1, 0.3), "geoopt"),
    "pogo": Contender(pogo, (0.03, 0.1, 0.3, 1.0, 3.0), (0.003, 0.01, 0.03, 0.1, 0.3), "pogo"),
    "muon": Contender(muon, (0.003, 0.01, 0.03, 0.1, 0.3), (3e-4, 0.001, 0.003, 0.01, 0.03)),
    "paper": Contender(paper, (0.01, 0.1, 1.0, 10.0, 100.0), (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)),
    "lstm": Contender(partial(gated, layer=nn.LSTM), (), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "gru": Contender(partial(gated, layer=nn.GRU), (), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "ours": Contender(ours),
    "ours-third": Contender(partial(ours), (1 / 3,), (1 / 3,)),
    "ours-thrice": Contender(partial(ours), (3.0,), (3.0,)),
    "factored": Contender(factored),
    "identity": Contender(partial(started, filler=identity_)),
    "cayley": Contender(partial(started, filler=cayley_), ()),
    "timescales": Contender(partial(started, filler=timescales_), ()),
}
PEERS = ("parametrizations", "geoopt", "pogo")  # that keep weights on the manifold
GATED = ("lstm", "gru")
STARTS = ("identity", "cayley", "timescales")


def available() -> list[str]:
    """The contenders whose packages are installed."""
    return [name for name, c in CONTENDERS.items() if c.needs is None or find_spec(c.needs) is not None]


def cosine(step: int, steps: int) -> float:
    """The factor of all rates at a step: from 1 to 0."""
    return (1 + math.cos(math.pi * step / steps)) / 2

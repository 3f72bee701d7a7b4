"""The recurrence and its gradients on plain tensors, for the nonlinearities that need no more than their output.

See Note [One node for a whole sequence].
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..activation import ModReLU
from ..base.symbolic import has_hooks
from .linear import are_few, by_pairs
from .packed import alive_of, states_before


class Fused(NamedTuple):
    """A nonlinearity f, with a bias or without.

    Attributes:
        module: the class of its modules.
        activate_: ``(y, bias)``: f in place.
        derivative: ``(g, y, d)``: writes to d the derivative of f, at the input whose output is y, times a gradient g.
    """

    module: type[nn.Module]
    activate_: Callable[[Tensor, Tensor | None], object]
    derivative: Callable[[Tensor, Tensor, Tensor], object]


# Note [No comparisons in a loop]
# What modReLU lets through could be asked for by a comparison, whose answer is a tensor of bools. A product of floats
# and bools takes several times as long as one of floats. The sign says the same in floats: forward and backward over
# 784 steps of 128 x 170 numbers take 0.33 s with it, 0.41 s with comparisons (one thread).


def _mod_relu_(y: Tensor, bias: Tensor | None) -> None:
    """Real modReLU in place, ``sgn(y) relu(|y| + bias)``; see Note [No comparisons in a loop]."""
    sign = torch.sgn(y)
    y.abs_().add_(bias).relu_().mul_(sign)  # type: ignore[arg-type]  # every ModReLU has one


_aten = torch.ops.aten
FUSED = {
    "relu": Fused(
        nn.ReLU,
        lambda y, bias: torch.relu_(y),
        lambda g, y, d: _aten.threshold_backward.grad_input(g, y, 0, grad_input=d),
    ),
    "tanh": Fused(
        nn.Tanh, lambda y, bias: torch.tanh_(y), lambda g, y, d: _aten.tanh_backward.grad_input(g, y, grad_input=d)
    ),
    "identity": Fused(nn.Identity, lambda y, bias: y, lambda g, y, d: d.copy_(g)),
    "modrelu": Fused(ModReLU, _mod_relu_, lambda g, y, d: torch.sgn(y, out=d).square_().mul_(g)),
}

_KINDS = {fused.module: name for name, fused in FUSED.items()}


def kind_of(activation: nn.Module, weight: Tensor) -> str | None:
    """The name in ``FUSED`` of a module's nonlinearity; None for others, and where its hooks ask for each step.

    Complex modReLU is none of them: its derivative is no function of its output alone.
    """
    if has_hooks(activation):
        return None
    kind = _KINDS.get(type(activation))
    return None if kind == "modrelu" and weight.is_complex() else kind


class Times(NamedTuple):
    """A recurrent matrix W by its products.

    Attributes:
        advance: ``(x, h, y)``: writes ``x + h W^T`` to y.
        return_: ``(d, g)``: writes ``d conj(W)`` to g.
    """

    advance: Callable[[Tensor, Tensor, Tensor], object]
    return_: Callable[[Tensor, Tensor], object]


def times(weight: Tensor | Times) -> Times:
    """The products with a matrix ``(n, n)``, or those that are given."""
    if isinstance(weight, Times):
        return weight
    transposed, conjugate = weight.mT, weight.conj()
    return Times(
        lambda x, h, y: torch.addmm(x, h, transposed, out=y),
        lambda d, g: torch.mm(d, conjugate, out=g),
    )


def states(
    projected: Tensor,
    h_0: Tensor,
    weight: Tensor | Times,
    bias: Tensor | None,
    sizes: Sequence[int],
    kind: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """All states ``(sum(sizes), n)`` and the last of each sequence ``(batch, n)``; as :func:`scan`."""
    if kind == "identity" and isinstance(weight, Tensor) and are_few(sizes, projected):
        output = by_pairs(projected, h_0 @ weight.mT, weight.mT, reverse=reverse)
        return output, output[: len(h_0)].clone() if reverse else output[-len(h_0) :].clone()
    ended: list[Tensor] = []
    advance = times(weight).advance
    output = torch.empty_like(projected, memory_format=torch.contiguous_format)
    steps = list(zip(projected.split(sizes), output.split(sizes), strict=True))
    h = h_0[: sizes[-1 if reverse else 0]]
    for x, y in reversed(steps) if reverse else steps:
        h = alive_of(h, x.size(0), h_0, ended)
        advance(x, h, y)
        FUSED[kind].activate_(y, bias)
        h = y
    return output, torch.cat([h, *ended[::-1]])


class Arriving(NamedTuple):
    """Gradients of the two results of :func:`states`, None where one was not used."""

    output: Tensor | None
    h_n: Tensor | None


def gradients(
    arriving: Arriving,
    h_0: Tensor,
    weight: Tensor | Times,
    output: Tensor,
    sizes: Sequence[int],
    kind: str,
    reverse: bool,
    with_bias: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of ``projected``, which are those of all pre-activations, of ``h_0``, and of the bias if there is one.

    With the states before, the first give that of the weight: :func:`product_over_time`.
    """
    carried = torch.zeros_like(h_0) if arriving.h_n is None else arriving.h_n.clone()
    if kind == "identity" and isinstance(weight, Tensor) and are_few(sizes, output):
        arrived, conjugate = torch.zeros_like(output) if arriving.output is None else arriving.output, weight.conj()
        delta = by_pairs(arrived, carried, conjugate, reverse=not reverse)
        return delta, (delta[-len(h_0) :] if reverse else delta[: len(h_0)]) @ conjugate, None
    return_, delta = times(weight).return_, torch.empty_like(output)
    grad_bias = torch.zeros_like(h_0) if with_bias else None
    parts = [None] * len(sizes) if arriving.output is None else arriving.output.split(sizes)
    steps = list(zip(parts, output.split(sizes), delta.split(sizes), strict=True))
    for g, y, d in steps if reverse else reversed(steps):
        alive = carried[: y.size(0)]
        FUSED[kind].derivative(alive if g is None else alive.add_(g), y, d)
        return_(d, alive)
        if grad_bias is not None:
            grad_bias[: y.size(0)].addcmul_(d, torch.sgn(y))
    return delta, carried, None if grad_bias is None else grad_bias.sum(0)


def product_over_time(delta: Tensor, output: Tensor, h_0: Tensor, sizes: Sequence[int], reverse: bool) -> Tensor:
    """``sum_t delta_t^T conj(h_{t-1})`` ``(n, n)``: the gradient of the recurrent matrix."""
    (first, h), *rest = states_before(output, h_0, sizes, reverse)
    product = delta[first].mT @ h.conj()
    for rows, before in rest:
        product.addmm_(delta[rows].mT, before.conj())
    return product

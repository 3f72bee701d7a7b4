"""The nonlinearities with which a recurrence is one node of the graph; see Note [One node for a whole sequence]."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..activation import ModReLU


class Fused(NamedTuple):
    """A nonlinearity f, with a bias or without, as the node needs it.

    Attributes:
        activate_: ``(y, bias)``: f in place.
        derivative: ``(g, y, d)``: writes to d the derivative of f, at the input whose output is y, times a gradient g.
    """

    activate_: Callable[[Tensor, Tensor | None], object]
    derivative: Callable[[Tensor, Tensor, Tensor], object]


def _mod_relu_(y: Tensor, bias: Tensor | None) -> None:
    """Real modReLU in place: ``y + bias sgn(y)``, and zero where that has not the sign of y."""
    sign = torch.sgn(y)
    y.addcmul_(sign, bias)  # type: ignore[arg-type]  # every ModReLU has one
    y.mul_(sign.mul_(y) > 0)


_aten = torch.ops.aten
# A plain dict: torch.compile breaks the graph at a MappingProxyType whose keys are classes.
FUSED: dict[type[nn.Module], Fused] = {
    nn.ReLU: Fused(
        lambda y, bias: torch.relu_(y), lambda g, y, d: _aten.threshold_backward.grad_input(g, y, 0, grad_input=d)
    ),
    nn.Tanh: Fused(lambda y, bias: torch.tanh_(y), lambda g, y, d: _aten.tanh_backward.grad_input(g, y, grad_input=d)),
    nn.Identity: Fused(lambda y, bias: y, lambda g, y, d: d.copy_(g)),
    ModReLU: Fused(_mod_relu_, lambda g, y, d: torch.mul(g, y != 0, out=d)),
}


def is_fused(activation: nn.Module, weight: Tensor) -> bool:
    """Whether :func:`scan` runs as one node: the derivative of complex modReLU is no function of its output alone."""
    if type(activation) not in FUSED or (isinstance(activation, ModReLU) and weight.is_complex()):
        return False
    hooks = (activation._forward_pre_hooks, activation._forward_hooks)
    return not any((*hooks, activation._backward_pre_hooks, activation._backward_hooks))  # which ask for each step

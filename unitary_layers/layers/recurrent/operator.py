"""The recurrence as one operator of torch, into which no compiler looks; see Note [One node for a whole sequence]."""

from typing import Any

import torch
from torch import Tensor
from torch.fx.node import has_side_effect

from ...projunn.gradient import SummedGradient
from ...training.factored.collect import operator_of
from ...training.factored.graphs import IN_PYTHON, add_if_wanted, weight_at
from ...training.precision import without_autocast
from .fused import Arriving, gradients, product_over_time, states
from .packed import sizes_in_graph, states_before


@torch.library.custom_op("unitary_layers::scan", mutates_args=())
def scan_operator(
    projected: Tensor,
    h_0: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factored: Tensor | None,
    batch_sizes: Tensor | None,
    kind: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """:func:`scan` with a nonlinearity of ``FUSED`` by its name; the length of the sequence is that of its tensors.

    ``factored`` is the parameter of a constant weight whose gradient backward collects, see Note [An operator that
    collects].
    """
    sizes = sizes_in_graph(batch_sizes, projected, h_0)
    return states(projected, h_0, weight, bias, sizes, kind, reverse)


@scan_operator.register_fake
def _(projected: Tensor, h_0: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return projected.new_empty(projected.shape), h_0.new_empty(h_0.shape)


@torch.library.custom_op("unitary_layers::scan_backward", mutates_args=(), **IN_PYTHON)
def _scan_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    h_0: Tensor,
    weight: Tensor,
    output: Tensor,
    factored: Tensor | None,
    batch_sizes: Tensor | None,
    kind: str,
    reverse: bool,
    with_weight: bool,
    with_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the first four arguments of the operator; empty ones where they are not wanted."""
    sizes, arriving = sizes_in_graph(batch_sizes, output, h_0), Arriving(grad_output, grad_h_n)
    with without_autocast(output.device.type):
        delta, grad_h_0, grad_bias = gradients(arriving, h_0, weight, output, sizes, kind, reverse, with_bias)
        grad_weight = product_over_time(delta, output, h_0, sizes, reverse) if with_weight else delta.new_empty(0)
    if factored is not None:
        collected = weight_at(factored)
        parts = states_before(output, h_0, sizes, reverse)
        of = [(delta[rows], before) for rows, before in parts]
        add_if_wanted(collected, lambda: SummedGradient(tuple(operator_of(collected, *pair) for pair in of)))
    return delta, grad_h_0, grad_weight, delta.new_empty(0) if grad_bias is None else grad_bias


@_scan_backward.register_fake
def _(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    h_0: Tensor,
    weight: Tensor,
    output: Tensor,
    factored: Tensor | None,
    batch_sizes: Tensor | None,
    kind: str,
    reverse: bool,
    with_weight: bool,
    with_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_weight = weight.shape if with_weight else (0,)
    of_bias = output.shape[1:] if with_bias else (0,)
    return torch.empty_like(output), h_0.new_empty(h_0.shape), weight.new_empty(of_weight), output.new_empty(of_bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, h_0, weight, _, factored, batch_sizes, ctx.kind, ctx.reverse = inputs
    ctx.save_for_backward(h_0, weight, output[0], factored, batch_sizes)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None) -> tuple[Tensor | None, ...]:
    _, _, with_weight, with_bias, *_ = ctx.needs_input_grad
    of = (grad_output, grad_h_n, *ctx.saved_tensors, ctx.kind, ctx.reverse)
    delta, grad_h_0, grad_weight, grad_bias = _scan_backward(*of, with_weight, with_bias)
    wanted = (grad_weight if with_weight else None, grad_bias if with_bias else None)
    return delta, grad_h_0, *wanted, None, None, None, None


scan_operator.register_autograd(_backward, setup_context=_keep)
has_side_effect(torch.ops.unitary_layers.scan_backward.default)  # it may collect a gradient and be used by nobody

"""One recurrent layer over time, for padded and packed sequences: by a plain loop, or as one node of the graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...linalg.transforms import is_transformed
from ...training.factored.collect import Parts, collect
from ...training.factored.once import once_differentiable
from ...training.weight import UnitaryWeight
from ..base.inputs import without_autocast
from .fused import FUSED, is_fused

# Note [One node for a whole sequence]
# Left to autograd, a recurrence of T steps is 3 T nodes, and the gradient of its matrix is T thin products, each
# added to an n x n buffer. Where the derivative of the nonlinearity is a function of its output, the whole sequence
# is one node: backward keeps the gradients of all pre-activations side by side, and the matrix gets one product over
# all steps. It cannot be differentiated twice and says so.


def scan(
    projected: Tensor,
    batch_sizes: Sequence[int],
    h_0: Tensor,
    weight: Tensor,
    activation: nn.Module,
    *,
    factored: UnitaryWeight | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""``h_t = activation(projected_t + h_{t-1} W^T)`` over the rows of a packed sequence.

    The rows of time step t are ``batch_sizes[t]`` consecutive ones, the longest sequence first, as in
    ``PackedSequence``; a padded batch is the case of equal batch sizes.

    Args:
        projected: inputs times the input weight, with the biases, ``(sum(batch_sizes), n)``.
        batch_sizes: sequences alive at each time step, not increasing.
        h_0: ``(batch, n)``.
        weight: recurrent matrix W ``(n, n)``.
        activation: acts on ``(rows, n)``; those in ``FUSED`` run as one node.
        factored: the weight, where backward is to collect its gradient from the factors, one product over all steps.
        reverse: run from the last time step to the first.

    Returns:
        All states ``(sum(batch_sizes), n)``, and the state of each sequence after its last step ``(batch, n)``.
    """
    if factored is not None:
        return _collected_scan(projected, batch_sizes, h_0, weight, activation, factored, reverse)
    if is_transformed() or not is_fused(activation, weight):
        return loop(projected, batch_sizes, h_0, weight, activation, reverse=reverse)
    bias = getattr(activation, "bias", None)
    bias = None if bias is None else bias.to(projected.dtype)
    return _FusedScan.apply(projected, h_0, weight, bias, tuple(batch_sizes), type(activation), reverse)


def _collected_scan(
    projected: Tensor,
    batch_sizes: Sequence[int],
    h_0: Tensor,
    weight: Tensor,
    activation: nn.Module,
    factored: UnitaryWeight,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """:func:`scan` with a constant weight, whose gradient comes from that of ``projected``: all deltas side by side."""
    kept: list[Tensor] = []

    def inputs() -> Parts:
        output, first = kept
        kept.clear()
        return _states_before(output, first, batch_sizes, reverse)

    projected = collect(projected, factored, inputs)
    outputs = scan(projected, batch_sizes, _Once.apply(h_0), weight.detach(), activation, reverse=reverse)
    return _Keep.apply(kept, h_0.detach(), *outputs)


def loop(
    projected: Tensor,
    batch_sizes: Sequence[int],
    h_0: Tensor,
    weight: Tensor,
    activation: Callable[[Tensor], Tensor],
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`scan` as a loop that autograd records step by step, for any nonlinearity."""
    steps = projected.split(list(batch_sizes))
    transposed = weight.mT
    outputs: list[Tensor] = []
    ended: list[Tensor] = []
    h = h_0[: steps[-1 if reverse else 0].size(0)]
    for x in reversed(steps) if reverse else steps:
        h = _alive(h, x.size(0), h_0, ended)
        h = activation(torch.addmm(x, h, transposed))
        outputs.append(h)
    ended.append(h)
    return torch.cat(outputs[::-1] if reverse else outputs), torch.cat(ended[::-1])


def _alive(h: Tensor, alive: int, h_0: Tensor, ended: list[Tensor]) -> Tensor:
    """The states of those sequences that are alive at the next step, of those at this one."""
    if alive < h.size(0):  # forwards, the shortest sequences end
        ended.append(h[alive:])
        return h[:alive]
    if alive > h.size(0):  # backwards, they begin
        return torch.cat([h, h_0[h.size(0) : alive]])
    return h


class _Keep(torch.autograd.Function):
    """The identity of a scan's outputs, which hands all states to the tap before it when backward comes by.

    A saved tensor is let go as soon as backward is done with it, and looked at whether it was modified; what the
    closure of the tap held would live as long as the loss.
    """

    @staticmethod
    def forward(ctx: Any, kept: list[Tensor], h_0: Tensor, output: Tensor, h_n: Tensor) -> tuple[Tensor, Tensor]:
        ctx.kept = kept
        ctx.save_for_backward(output, h_0)
        ctx.set_materialize_grads(False)
        return output.view_as(output), h_n.view_as(h_n)  # views of a function's own, so not to be modified in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: tuple[Tensor, ...], *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.kept[:] = saved
        return None, None, *gradients


class _Once(torch.autograd.Function):
    """The identity, which cannot be differentiated twice: behind it the weight is a constant to autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor]:
        return (grad,)


class _FusedScan(torch.autograd.Function):
    """:func:`scan` as one node; see Note [One node for a whole sequence]."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        h_0: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        batch_sizes: tuple[int, ...],
        kind: type[nn.Module],
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        ended: list[Tensor] = []
        output = torch.empty_like(projected)
        steps = list(zip(projected.split(batch_sizes), output.split(batch_sizes), strict=True))
        h = h_0[: batch_sizes[-1 if reverse else 0]]
        for x, y in reversed(steps) if reverse else steps:
            h = _alive(h, x.size(0), h_0, ended)
            torch.addmm(x, h, weight.mT, out=y)
            FUSED[kind].activate_(y, bias)
            h = y
        h = torch.cat([h, *ended[::-1]])
        ctx.save_for_backward(h_0, weight, output)
        ctx.set_materialize_grads(False)  # whoever reads only one of the outputs pays for no zeros
        ctx.batch_sizes, ctx.kind, ctx.reverse = batch_sizes, kind, reverse
        return output, h

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        h_0, weight, output = saved
        sizes = ctx.batch_sizes
        carried = torch.zeros_like(h_0) if grad_h_n is None else grad_h_n.clone()
        conjugate, delta = weight.conj(), torch.empty_like(output)
        grad_bias = torch.zeros_like(h_0) if ctx.needs_input_grad[3] else None
        arriving = [None] * len(sizes) if grad_output is None else grad_output.split(sizes)
        steps = list(zip(arriving, output.split(sizes), delta.split(sizes), strict=True))
        for g, y, d in steps if ctx.reverse else reversed(steps):
            alive = carried[: y.size(0)]
            FUSED[ctx.kind].derivative(alive if g is None else alive.add_(g), y, d)
            torch.mm(d, conjugate, out=alive)
            if grad_bias is not None:
                grad_bias[: y.size(0)].addcmul_(d, torch.sgn(y))
        grad_weight = None
        if ctx.needs_input_grad[2]:
            with without_autocast(delta.device.type):  # in which backward may run, though forward did not
                grad_weight = _product_over_time(delta, output, h_0, sizes, ctx.reverse)
        grad_bias = None if grad_bias is None else grad_bias.sum(0)
        return delta, carried, grad_weight, grad_bias, None, None, None


def _product_over_time(delta: Tensor, output: Tensor, h_0: Tensor, batch_sizes: Sequence[int], reverse: bool) -> Tensor:
    """``sum_t delta_t^T conj(h_{t-1})`` ``(n, n)``: the gradient of the recurrent matrix."""
    (first, h), *rest = _states_before(output, h_0, batch_sizes, reverse)
    product = delta[first].mT @ h.conj()
    for rows, before in rest:
        product.addmm_(delta[rows].mT, before.conj())
    return product


def _states_before(output: Tensor, h_0: Tensor, batch_sizes: Sequence[int], reverse: bool) -> Parts:
    """The state before each row of a packed sequence: rows, and the states ``(len(rows), n)`` that belong to them."""
    batch = batch_sizes[0]
    if batch_sizes[-1] == batch:  # a padded batch: the states before are the states, one time step on
        first, rest = (slice(-batch, None), slice(None, -batch)) if reverse else (slice(batch), slice(batch, None))
        return [(first, h_0), (rest, output[batch:] if reverse else output[: len(output) - batch])]
    rows = _rows_before(batch_sizes, reverse, output.device)
    return [(slice(None), torch.cat([h_0, output]).index_select(0, rows))]


def _rows_before(batch_sizes: Sequence[int], reverse: bool, device: torch.device) -> Tensor:
    """For each row of a packed sequence, the row of ``cat([h_0, output])`` that holds the state before it."""
    sizes = torch.tensor(batch_sizes)
    batch, starts = int(sizes[0]), sizes.cumsum(0) - sizes
    time = torch.arange(len(sizes)).repeat_interleave(sizes)
    sequence = torch.arange(len(time)) - starts[time]
    other = time + (1 if reverse else -1)
    inside = (other >= 0) & (other < len(sizes))
    other = other.clamp(0, len(sizes) - 1)
    inside &= sequence < sizes[other]
    return torch.where(inside, batch + starts[other] + sequence, sequence).to(device)

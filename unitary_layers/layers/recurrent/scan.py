"""One recurrent layer over time, for padded and packed sequences: a loop, one node of the graph, or one operator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...linalg.transforms import is_open, is_transformed
from ...training.factored.collect import Parts, collect
from ...training.factored.graphs import Sampled, weight_at
from ...training.factored.once import once_differentiable
from ...training.precision import without_autocast
from ...training.weight import UnitaryWeight
from .fused import Arriving, gradients, kind_of, product_over_time, states
from .operator import scan_operator
from .packed import alive_of, sizes_of, states_before

# Note [One node for a whole sequence]
# Left to autograd, a recurrence of T steps is 3 T nodes, and the gradient of its matrix is T thin products, each
# added to an n x n buffer. Where the derivative of the nonlinearity is a function of its output, the whole sequence
# is one node: backward keeps the gradients of all pre-activations side by side, and the matrix gets one product over
# all steps. It cannot be differentiated twice and says so.
# torch.compile would look into the node and unroll its loop, for each length anew. There it is one operator.


def scan(
    projected: Tensor,
    lengths: Tensor | int,
    h_0: Tensor,
    weight: Tensor,
    activation: nn.Module,
    *,
    factored: Sampled | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""``h_t = activation(projected_t + h_{t-1} W^T)`` over the rows of a packed sequence.

    The rows of time step t are ``batch_sizes[t]`` consecutive ones, the longest sequence first, as in
    ``PackedSequence``.

    Args:
        projected: inputs times the input weight, with the biases, ``(sum(batch_sizes), n)``.
        lengths: ``batch_sizes`` ``(t,)``, how many sequences are alive at each time step, not increasing; or of a
            padded batch, in which all always are, the number of time steps.
        h_0: ``(batch, n)``.
        weight: recurrent matrix W ``(n, n)``.
        activation: acts on ``(rows, n)``; those in ``FUSED`` run as one node.
        factored: the weight, where backward is to collect its gradient from the factors, one product over all steps.
        reverse: run from the last time step to the first.

    Returns:
        All states ``(sum(batch_sizes), n)``, and the state of each sequence after its last step ``(batch, n)``.
    """
    kind, is_formula = kind_of(activation, weight), is_transformed()
    is_any = not isinstance(lengths, Tensor) and is_open(lengths)
    if kind is not None and (is_any if is_formula else torch.compiler.is_compiling()):
        assert not isinstance(factored, UnitaryWeight)  # see Note [An operator that collects]
        weight, bias = weight if factored is None else weight.detach(), bias_of(activation, projected)
        sizes = lengths if isinstance(lengths, Tensor) else None
        return scan_operator(projected, h_0, weight, bias, factored, sizes, kind, reverse)
    of = (sizes_of(lengths, h_0.size(0)), h_0, weight, activation, None if is_formula else kind)
    if factored is None:
        return _scan(projected, *of, reverse)
    return _collected_scan(projected, *of, factored, reverse)


def _scan(
    projected: Tensor,
    sizes: Sequence[int],
    h_0: Tensor,
    weight: Tensor,
    activation: nn.Module,
    kind: str | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    if kind is None:
        return loop(projected, sizes, h_0, weight, activation, reverse=reverse)
    return _FusedScan.apply(projected, h_0, weight, bias_of(activation, projected), sizes, kind, reverse)


def bias_of(activation: nn.Module, like: Tensor) -> Tensor | None:
    """The bias of a nonlinearity, if it has one, in the dtype of ``like``."""
    bias = getattr(activation, "bias", None)
    return None if bias is None else bias.to(like.dtype)


@torch.compiler.disable  # a loop whose gradient is collected all at once
def _collected_scan(
    projected: Tensor,
    sizes: Sequence[int],
    h_0: Tensor,
    weight: Tensor,
    activation: nn.Module,
    kind: str | None,
    factored: Sampled,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """:func:`scan` with a constant weight, whose gradient comes from that of ``projected``: all deltas side by side."""
    kept: list[Tensor] = []
    factored = factored if isinstance(factored, UnitaryWeight) else weight_at(factored)

    def inputs() -> Parts:
        output, first = kept
        kept.clear()
        return states_before(output, first, sizes, reverse)

    projected = collect(projected, factored, inputs)
    outputs = _scan(projected, sizes, _Once.apply(h_0), weight.detach(), activation, kind, reverse)
    return _Keep.apply(kept, h_0.detach(), *outputs)


def loop(
    projected: Tensor,
    sizes: Sequence[int],
    h_0: Tensor,
    weight: Tensor,
    activation: Callable[[Tensor], Tensor],
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`scan` as a loop that autograd records step by step, for any nonlinearity."""
    steps = projected.split(list(sizes))
    transposed = weight.mT
    outputs: list[Tensor] = []
    ended: list[Tensor] = []
    h = h_0[: steps[-1 if reverse else 0].size(0)]
    for x in reversed(steps) if reverse else steps:
        h = alive_of(h, x.size(0), h_0, ended)
        h = activation(torch.addmm(x, h, transposed))
        outputs.append(h)
    ended.append(h)
    return torch.cat(outputs[::-1] if reverse else outputs), torch.cat(ended[::-1])


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
        sizes: Sequence[int],
        kind: str,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        output, h_n = states(projected, h_0, weight, bias, sizes, kind, reverse)
        ctx.save_for_backward(h_0, weight, output)
        ctx.set_materialize_grads(False)  # whoever reads only one of the outputs pays for no zeros
        ctx.sizes, ctx.kind, ctx.reverse = sizes, kind, reverse
        return output, h_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: tuple[Tensor, ...], *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        h_0, weight, output = saved
        _, _, with_weight, with_bias, *_ = ctx.needs_input_grad
        of = (Arriving(*arriving), h_0, weight, output, ctx.sizes, ctx.kind, ctx.reverse)
        delta, grad_h_0, grad_bias = gradients(*of, with_bias)
        grad_weight = None
        if with_weight:
            with without_autocast(delta.device.type):  # in which backward may run, though forward did not
                grad_weight = product_over_time(delta, output, h_0, ctx.sizes, ctx.reverse)
        return delta, grad_h_0, grad_weight, grad_bias, None, None, None

"""The factored gradient: sampled inside backward, where its factors are at hand, and never formed as a matrix."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...linalg import LowRank
from ...projunn.gradient import DenseGradient, FactoredGradient, GradientOperator, SummedGradient
from ...projunn.sampling import recompressed, side_by_side
from ..collected import FactoredGrad
from ..content import Content
from ..memory import thin_sample
from ..parallel.shared import check_alone
from ..weight import UnitaryWeight
from .once import once_differentiable

# Note [Sampling inside backward]
# To autograd the weight of a factored layer is a constant, and a second, empty term is added to the output:
#     y = x W.detach()^T + tap(W)
# The gradient of y flows through to x, and, where gradients of parameters are wanted, to the tap, which samples
# G = delta^T conj(x) to rank k, in the spectral direction to 2 k (see Note [A thin momentum]). It adds that to what is
# in the weight's ``.grad`` and returns no gradient. So loss.backward() fills what the step needs,
# torch.autograd.grad(loss, x) leaves it alone, a hook that waits for the accumulated gradient fires as usual, and delta
# and x are freed as always: what stays is O(k n).
# Several uses of a weight before a step (time steps of a cell, micro-batches) are sampled one by one with the same
# random numbers and their factors put side by side; beyond 4 k + 4 columns the sum is cut to that by its singular
# values. Against sampling the sum of the gradients this makes an error of at most the sum of the parts' own sampling
# errors; with a rank of at least the rows of each part there is none but rounding.
# It cannot be differentiated twice and says so.

# Note [Kept until the step]
# A weight that shares its gradients cannot be sampled in backward: where one rank leaves it out, uses it more often, or
# goes through more micro-batches, the others would wait for a product that never comes, or take that of another weight
# for it. The step is where all ranks meet. So its factors delta and x stay until then, as long as they are smaller than
# the m x n matrix, and as that matrix from there on: many small parts, or a long sequence, never hold more than a dense
# gradient would. The step samples the sum, in two exchanges however often the weight was used.

# Note [Who wants the matrix]
# torch.autograd.grad(loss, weight) returns a gradient and leaves ``.grad`` alone, and a hook on the weight may return
# another gradient. For both the tap returns G itself, a matrix, as a dense layer does, and collects nothing.

Parts = Sequence[tuple[slice, Tensor]]  # rows of delta, and the inputs (rows, n) that belong to them


def collect(y: Tensor, weight: UnitaryWeight, input: Tensor | Callable[[], Parts], *, adjoint: bool = False) -> Tensor:
    """Returns ``y``, linear in a weight that it was computed from as a constant; backward samples its gradient.

    Args:
        y: ``input @ W^T`` ``(..., rows, m)``, and whatever was added to it; modified in place, for autograd alone.
        weight: the factored weight, ``(..., m, n)``.
        input: ``(..., rows, n)``; or a function that returns it in backward, in parts.
        adjoint: whether y is the product with the adjoint weight, ``input @ conj(W)`` ``(..., rows, n)`` of an input
            ``(..., rows, m)``.
    """
    kept = input if callable(input) else input.detach()
    return _Join.apply(y, _Tap.apply(weight.parameter, weight, kept, y.detach(), adjoint))


class _Tap(torch.autograd.Function):
    """Zeros of the shape of y, without memory, whose gradient is sampled."""

    @staticmethod
    def forward(
        ctx: Any,
        parameter: Tensor,
        weight: UnitaryWeight,
        input: Tensor | Callable[[], Parts],
        like: Tensor,
        adjoint: bool,
    ) -> Tensor:
        ctx.weight, ctx.parts, ctx.adjoint = weight, input if callable(input) else None, adjoint
        if ctx.parts is None:
            ctx.save_for_backward(input)
        return like.new_zeros(()).expand(like.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: tuple[Tensor, ...], delta: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        gradient: GradientOperator
        if ctx.parts is None:
            gradient = operator_of(ctx.weight, *((*saved, delta) if ctx.adjoint else (delta, *saved)))
        else:
            gradient = SummedGradient(tuple(operator_of(ctx.weight, delta[rows], x) for rows, x in ctx.parts()))
        if gradient.device.type == "meta":  # which has no numbers to sample
            return None, None, None, None, None
        if ctx.weight.parameter._backward_hooks or _is_captured(ctx):  # see Note [Who wants the matrix]
            return as_stored(gradient, ctx.weight), None, None, None, None
        add_gradient(ctx.weight, gradient)
        return None, None, None, None, None


def _is_captured(ctx: Any) -> bool:
    """Whether this backward is to return the gradient of the parameter and not to accumulate it."""
    accumulates = ctx.next_functions[0][0]
    try:
        torch._C._will_engine_execute_node(accumulates)
    except RuntimeError:  # the answer of torch for a leaf that torch.autograd.grad was asked for
        return True
    return False


class _Join(torch.autograd.Function):
    """y, to which a tap has been added."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, tap: Tensor) -> Tensor:
        if y._is_view():
            return y.view_as(y)
        ctx.mark_dirty(y)  # and so not a view, which would refuse the in-place activation of a user
        return y

    @staticmethod
    @once_differentiable  # a second derivative would miss the weight, which is a constant to autograd
    def backward(ctx: Any, saved: tuple[Tensor, ...], delta: Tensor) -> tuple[Tensor, Tensor]:
        return delta, delta


def add_gradient(weight: UnitaryWeight, gradient: GradientOperator) -> None:
    """Adds a gradient, sampled where it can be, to what is collected; see Note [Sampling inside backward]."""
    if (found := weight.parameter.grad) is not None and not isinstance(found, FactoredGrad):  # a matrix stays one
        found.add_(as_stored(gradient, weight))
        return
    check_alone(weight)
    rule, content = weight.rule, found.content if found is not None else Content(is_complex=weight.is_complex)
    if weight.scaler is not None and weight.scaler.is_enabled():  # see Note [Unscaled in backward]
        scale = weight.scaler.get_scale()
        if content.is_zero:
            content.is_unscaled, content.scale = True, scale
        gradient = gradient.scale(1 / scale) if content.is_unscaled else gradient
    if weight.group is not None or content.kept is not None:  # see Note [Kept until the step]
        kept = gradient if content.kept is None else SummedGradient((content.kept, gradient))
        content.kept = kept if kept.numel < kept.shape.numel() else DenseGradient(kept.dense())
    else:
        low_rank = _sampled(weight, gradient)
        if content.low_rank is not None:
            total = side_by_side([content.low_rank, low_rank])
            low_rank = recompressed(total, 4 * rule.rank_of(min(weight.shape)) + 4)
        content.low_rank = low_rank
    if found is None:
        weight.parameter.grad = FactoredGrad(weight.parameter, content)


def as_stored(gradient: GradientOperator, weight: UnitaryWeight) -> Tensor:
    """A gradient as a matrix, stored as its weight is."""
    return weight.as_stored(gradient.dense()).to(weight.parameter.dtype)


def _sampled(weight: UnitaryWeight, gradient: GradientOperator) -> LowRank:
    """What backward keeps of a gradient; of the spectral direction see Note [A thin momentum]."""
    if weight.rule.is_spectral:
        return thin_sample(gradient, weight.rule, [weight.key]).low_rank
    return weight.rule.sample(gradient, [weight.key], weight.matrix, weight.previous_factor)


def operator_of(weight: UnitaryWeight, delta: Tensor, input: Tensor) -> FactoredGradient:
    """The gradient with the batch dimensions of the weight, and pairs (re, im) as complex numbers."""
    if weight.is_complex and not delta.is_complex():
        delta, input = (torch.view_as_complex(_at_least_float32(x).contiguous()) for x in (delta, input))
    if delta.dtype != input.dtype:  # under autocast
        delta, input = _at_least_float32(delta), _at_least_float32(input)
    if weight.group is not None:
        input = input.clone()  # its owner may write the next batch into it before the step
    batch = weight.matrix.shape[:-2]
    delta, input = (x.reshape(*batch, -1, x.size(-1)) for x in (delta, input))
    return FactoredGradient(delta, input)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

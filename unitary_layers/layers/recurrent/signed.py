"""The recurrence whose matrix is a product of signs and Hadamard matrices, by the fast transform or by the matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...linalg.hadamard import walsh_hadamard_like
from ...linalg.transforms import is_transformed
from ...training.factored.once import once_differentiable
from ...training.precision import without_autocast
from ..base.signs import assembled, signed_transform
from .fused import Arriving, Times, gradients, kind_of, states
from .packed import sizes_of, states_before
from .scan import bias_of, scan

# Note [Transform or matrix]
# A step by the transform costs n^1.5 a row in the place of n^2, but two small products in the place of one; and where
# the gradient of the matrix is one large product over all steps, that of the signs is a sum. Forward and backward, one
# stage, 128 rows, microseconds of processor time a step, matrix and transform: n = 256 484 and 364, n = 512 1,705 and
# 701, n = 1024 6,834 and 1,418. With 2 rows or two stages n = 256 is slower by the transform, n = 512 is not.
FAST = 512  # the least width at which the transform is taken
ROWS = 2**20  # numbers that backward transforms at once, so that its temporaries stay small


def signed_scan(
    projected: Tensor,
    lengths: Tensor | int,
    h_0: Tensor,
    signs: Tensor,
    block: int | None,
    activation: nn.Module,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`scan` with the recurrent matrix of :func:`signed_transform`; see Note [Transform or matrix]."""
    kind = kind_of(activation, projected)
    if kind is None or signs.size(-1) < FAST or is_transformed() or torch.compiler.is_compiling():
        return scan(projected, lengths, h_0, assembled(signs, block), activation, reverse=reverse)
    sizes = sizes_of(lengths, h_0.size(0))
    return _SignedScan.apply(projected, h_0, signs, bias_of(activation, projected), block, sizes, kind, reverse)


def _times(signs: Tensor, block: int | None) -> Times:
    """The products with the matrix, by the transform."""
    transform, stages = walsh_hadamard_like(signs, block), signs.unbind()

    def advance(x: Tensor, h: Tensor, y: Tensor) -> None:
        for stage in stages:
            h = transform(h) * stage
        torch.add(x, h, out=y)

    def return_(d: Tensor, g: Tensor) -> None:
        for stage in reversed(stages):
            d = transform(d * stage)
        g.copy_(d)

    return Times(advance, return_)


class _SignedScan(torch.autograd.Function):
    """:func:`signed_scan` by the transform, as one node; see Note [One node for a whole sequence]."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        h_0: Tensor,
        signs: Tensor,
        bias: Tensor | None,
        block: int | None,
        sizes: Sequence[int],
        kind: str,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        output, h_n = states(projected, h_0, _times(signs, block), bias, sizes, kind, reverse)
        ctx.save_for_backward(h_0, signs, output)
        ctx.set_materialize_grads(False)
        ctx.block, ctx.sizes, ctx.kind, ctx.reverse = block, sizes, kind, reverse
        return output, h_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: tuple[Tensor, ...], *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        h_0, signs, output = saved
        _, _, with_signs, with_bias, *_ = ctx.needs_input_grad
        with without_autocast(output.device.type):
            of = (h_0, _times(signs, ctx.block), output, ctx.sizes, ctx.kind, ctx.reverse)
            delta, grad_h_0, grad_bias = gradients(Arriving(*arriving), *of, with_bias)
            before = states_before(output, h_0, ctx.sizes, ctx.reverse) if with_signs else []
            grad_signs = torch.zeros_like(signs) if with_signs else None
            for rows, h in before:
                _add_gradient(grad_signs, signs, ctx.block, h, delta[rows])
        return delta, grad_h_0, grad_signs, grad_bias, None, None, None, None


def _add_gradient(total: Tensor | None, signs: Tensor, block: int | None, h: Tensor, delta: Tensor) -> None:
    """Adds the gradient of the signs, of states h ``(rows, n)`` and gradients delta of what becomes of them."""
    assert total is not None
    rows = max(ROWS // signs.size(-1), 1)
    for x, g in zip(h.split(rows), delta.split(rows), strict=True):
        with torch.enable_grad():
            leaf = signs.detach().requires_grad_()
            (grad,) = torch.autograd.grad(signed_transform(x.detach(), leaf, block), leaf, g)
        total += grad

"""A matrix of low rank by its two factors, and an orthonormal basis that never fails."""

from typing import NamedTuple

import torch
from torch import Tensor


class LowRank(NamedTuple):
    """The matrix ``left @ right^H``, which is never formed unless one asks for it.

    Attributes:
        left: ``(..., m, k)``.
        right: ``(..., n, k)``.
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """Number of columns k of the factors, an upper bound on the rank of the matrix."""
        return self.left.size(-1)

    def matrix(self) -> Tensor:
        """The dense matrix ``(..., m, n)``."""
        return self.left @ self.right.mH

    def scale(self, factor: float) -> "LowRank":
        """The matrix times ``factor``, which is applied to the left factor."""
        return LowRank(self.left * factor, self.right)


# Note [Thin factors are k-major]
# A thin factor (n, k) is kept as the transposed view of a row-major (k, n) tensor. Then q^H W and W q stream the
# row-major weight once; the other layout makes W^T q up to ten times slower on a CPU (n = 2048).


def k_major(x: Tensor) -> Tensor:
    """``x`` ``(..., n, k)`` with its memory laid out as ``(..., k, n)``; see Note [Thin factors are k-major]."""
    return x.mT.contiguous().mT


def unit_columns(x: Tensor) -> Tensor:
    """``x`` ``(..., n, k)`` with every column divided by its largest magnitude; a zero column stays zero.

    No epsilon: a column of 1e-30 comes out as one of order 1, so that products of it neither underflow nor overflow.
    """
    if x.size(-2) == 0:
        return x
    largest = x.abs().amax(dim=-2, keepdim=True)  # ten times as fast as vector_norm on a batch
    return x / largest.clamp_min(torch.finfo(largest.dtype).tiny)


def orthonormal_basis(x: Tensor) -> Tensor:
    """Orthonormal columns whose span contains the columns of ``x``, whatever their rank or scale.

    A rank-deficient ``x``, even zero, gives a full set of orthonormal columns all the same: Householder reflections
    are unitary whether or not there is something to reflect.

    LAPACK takes the matrices of a batch one by one, a microsecond each where they are thin; reflections written down in
    calls for the whole batch were measured two to six times slower.

    Args:
        x: ``(..., n, m)``, real or complex.

    Returns:
        k-major ``(..., n, min(n, m))``.
    """
    return k_major(torch.linalg.qr(unit_columns(x)).Q)

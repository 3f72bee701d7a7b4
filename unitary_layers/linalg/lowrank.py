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

    @property
    def mH(self) -> "LowRank":
        """The adjoint ``right @ left^H``."""
        return LowRank(self.right, self.left)

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


# Note [Equal columns in complex64]
# For complex64 matrices of up to 20 rows, seven or more columns of which are equal to the last bit, MKL's QR returns
# NaN: what each reflection leaves of them is eps times what it found, until that is below the smallest float32. In
# complex128 twenty reflections do not get there.

SAFE_COLUMNS = 6


def qr(x: Tensor) -> tuple[Tensor, Tensor]:
    """Reduced QR decomposition ``(..., n, r), (..., r, m)`` with r = min(n, m); x is of order 1, of whatever rank."""
    if x.dtype == torch.complex64 and x.size(-1) > SAFE_COLUMNS:
        q, r = torch.linalg.qr(x.to(torch.complex128))
        return q.to(x.dtype), r.to(x.dtype)
    return torch.linalg.qr(x)


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
    return k_major(qr(unit_columns(x))[0])

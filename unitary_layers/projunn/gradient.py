"""A gradient as a linear operator: all that the samplers ask of it are a few thin products.

Seeing it so, a gradient that exists only as factors, or only as a sum over machines, is trained by the same code as one
that autograd left in ``.grad``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class GradientOperator(ABC):
    """A matrix G of shape ``(..., m, n)``, known by its products with thin matrices."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Shape ``(..., m, n)`` of G."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Real or complex floating point type of G."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where G lies."""

    @abstractmethod
    def matmul(self, v: Tensor) -> Tensor:
        """``G v`` ``(..., m, k)`` of a k-major ``v`` ``(..., n, k)``."""

    @abstractmethod
    def rmatmul(self, u: Tensor) -> Tensor:
        """``G^H u`` ``(..., n, k)`` of a k-major ``u`` ``(..., m, k)``."""

    @abstractmethod
    def column_norms(self) -> Tensor:
        """Euclidean norms of the columns, float64 ``(..., n)``."""

    @abstractmethod
    def dense(self) -> Tensor:
        """G itself ``(..., m, n)``; for tests and the exact sampler."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether G has neither NaN nor infinity."""


@dataclass(frozen=True)
class DenseGradient(GradientOperator):
    """A gradient that exists as a matrix.

    Attributes:
        matrix: ``(..., m, n)``, real or complex.
    """

    matrix: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    def matmul(self, v: Tensor) -> Tensor:
        return self.matrix @ v

    def rmatmul(self, u: Tensor) -> Tensor:
        # (u^H G)^H and not G^H u: a row-major G is streamed once; see Note [Thin factors are k-major].
        return (u.mH @ self.matrix).mH

    def column_norms(self) -> Tensor:
        # float64, because the squares of 1e-30 and of 1e30 leave the range of float32.
        dtype = torch.complex128 if self.matrix.is_complex() else torch.float64
        return torch.linalg.vector_norm(self.matrix, dim=-2, dtype=dtype).double()

    def dense(self) -> Tensor:
        return self.matrix

    def is_finite(self) -> bool:
        # A NaN or an infinity always survives a sum, which reads G once and allocates nothing; only where the sum is
        # not finite, perhaps of huge numbers, is every entry looked at.
        return bool(torch.isfinite(self.matrix.sum())) or bool(torch.isfinite(self.matrix).all())

"""A gradient as a linear operator: all that the samplers ask of it are a few thin products.

Seeing it so, a gradient that exists only as factors, or only as a sum over machines, is trained by the same code as one
that autograd left in ``.grad``.
"""

import cmath
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg import LowRank
from ..linalg.thin import thin_times, times_thin


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

    def column_norms(self) -> Tensor:
        """Euclidean norms of the columns, float64 ``(..., n)``; forms G."""
        # float64, because the squares of 1e-30 and of 1e30 leave the range of float32.
        dtype = torch.complex128 if self.dtype.is_complex else torch.float64
        return torch.linalg.vector_norm(self.dense(), dim=-2, dtype=dtype).double()

    def along(self, direction: LowRank) -> Tensor:
        """The slope ``Re <G, direction>`` ``(...)`` in the real dtype of G."""
        return (self.matmul(direction.right) * direction.left.conj()).sum((-2, -1)).real

    @abstractmethod
    def dense(self) -> Tensor:
        """G itself ``(..., m, n)``; for tests and the exact sampler."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether G has neither NaN nor infinity."""

    @property
    def numel(self) -> int:
        """How many numbers this form of G holds: as many as the matrix, where it says no other."""
        return self.shape.numel()

    def scale(self, factor: float) -> "GradientOperator":
        """``factor * G``."""
        *batch, m, n = self.shape
        rows = torch.full((*batch, m), factor, dtype=self.dtype.to_real(), device=self.device)
        return ScaledGradient(self, rows, rows.new_ones(*batch, n))


@dataclass(frozen=True)
class DenseGradient(GradientOperator):
    """A gradient that exists as a matrix.

    Attributes:
        matrix: ``(..., m, n)``, real or complex.
    """

    matrix: Tensor

    def scale(self, factor: float) -> "DenseGradient":
        return DenseGradient(self.matrix * factor)

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
        return times_thin(self.matrix, v)

    def rmatmul(self, u: Tensor) -> Tensor:
        return thin_times(u, self.matrix).mH

    def dense(self) -> Tensor:
        return self.matrix

    def is_finite(self) -> bool:
        # A NaN or an infinity always survives a sum, which reads G once and allocates nothing; only where the sum is
        # not finite, perhaps of huge numbers, is every entry looked at.
        return cmath.isfinite(self.matrix.sum().item()) or bool(torch.isfinite(self.matrix).all())


# Note [A gradient that is never formed]
# For y = x W^T the gradient of W is G = delta^T conj(x), with delta, the gradient of y, and x both (rows, n): a product
# of 2 rows n^2 operations into a new n x n buffer. A sampler asks only for G v and G^H u, which are two thin products
# each, of 4 k rows n operations. Both stream delta and x once, row-major, and land k-major; conjugates are taken of
# what is thin. Many rows go in panels; see Note [Panels].


@dataclass(frozen=True)
class FactoredGradient(GradientOperator):
    """The gradient of a linear map by its two factors; see Note [A gradient that is never formed].

    Attributes:
        delta: gradient of the output, ``(..., rows, m)``.
        input: input of the map, ``(..., rows, n)``.
    """

    delta: Tensor
    input: Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.delta.shape[:-2], self.delta.size(-1), self.input.size(-1)))

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.delta.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        return self.delta.device

    def matmul(self, v: Tensor) -> Tensor:
        return self._through(self.input, self.delta, v)

    def rmatmul(self, u: Tensor) -> Tensor:
        return self._through(self.delta, self.input, u)

    def _through(self, first: Tensor, second: Tensor, thin: Tensor) -> Tensor:
        """``second^T conj(first) thin``."""
        return thin_times(times_thin(first, thin.to(first.dtype).conj()), second).to(self.dtype).mT

    def dense(self) -> Tensor:
        return (self.delta.mT @ self.input.conj()).to(self.dtype)

    def is_finite(self) -> bool:
        return DenseGradient(self.delta).is_finite() and DenseGradient(self.input).is_finite()

    @property
    def numel(self) -> int:
        return self.delta.numel() + self.input.numel()


class WrappedGradient(GradientOperator):
    """A gradient that is made of another one of its shape, dtype and device, ``inner``."""

    inner: GradientOperator

    @property
    def shape(self) -> torch.Size:
        return self.inner.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype

    @property
    def device(self) -> torch.device:
        return self.inner.device


@dataclass(frozen=True)
class ScaledGradient(WrappedGradient):
    """A gradient with every row and every column times a factor: ``diag(rows) G diag(columns)``.

    Attributes:
        inner: G ``(..., m, n)``.
        rows: real ``(..., m)``.
        columns: real ``(..., n)``.
    """

    inner: GradientOperator
    rows: Tensor
    columns: Tensor

    def matmul(self, v: Tensor) -> Tensor:
        return self.inner.matmul(v * self.columns.unsqueeze(-1)) * self.rows.unsqueeze(-1)

    def rmatmul(self, u: Tensor) -> Tensor:
        return self.inner.rmatmul(u * self.rows.unsqueeze(-1)) * self.columns.unsqueeze(-1)

    def dense(self) -> Tensor:
        return self.rows.unsqueeze(-1) * self.inner.dense() * self.columns.unsqueeze(-2)

    def is_finite(self) -> bool:
        return self.inner.is_finite()

    @property
    def numel(self) -> int:
        return self.inner.numel + self.rows.numel() + self.columns.numel()


@dataclass(frozen=True)
class SummedGradient(GradientOperator):
    """The sum of gradients of one shape, dtype and device.

    Attributes:
        parts: one or more.
    """

    parts: tuple[GradientOperator, ...]

    @property
    def shape(self) -> torch.Size:
        return self.parts[0].shape

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def matmul(self, v: Tensor) -> Tensor:
        return sum((part.matmul(v).mT for part in self.parts[1:]), self.parts[0].matmul(v).mT).mT

    def rmatmul(self, u: Tensor) -> Tensor:
        return sum((part.rmatmul(u).mT for part in self.parts[1:]), self.parts[0].rmatmul(u).mT).mT

    def dense(self) -> Tensor:
        return sum((part.dense() for part in self.parts[1:]), self.parts[0].dense())

    def is_finite(self) -> bool:
        return all(part.is_finite() for part in self.parts)

    @property
    def numel(self) -> int:
        return sum(part.numel for part in self.parts)

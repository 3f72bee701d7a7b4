"""What a factored gradient consists of: a sample of low rank, or the gradient itself as an operator."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..linalg import LowRank
from ..projunn.gradient import DenseGradient, GradientOperator


class Content:
    """What is kept of one gradient.

    Attributes:
        is_complex: whether the weight is stored as pairs (real part, imaginary part).
        low_rank: the sum of the samples over the uses of the weight so far, or None.
        kept: the gradient itself, not sampled: of a weight that shares its gradients with other ranks, or as a matrix
            that something has written; or None. Where there is neither it nor a sample, the gradient is zero.
        is_unscaled: whether the scale of a GradScaler has been taken out of it.
        scale: what whoever reads it finds it multiplied by; see Note [Unscaled in backward].
    """

    def __init__(self, *, is_complex: bool) -> None:
        self.is_complex = is_complex
        self.clear()

    def clear(self) -> None:
        """Makes it zero."""
        self.low_rank: LowRank | None = None
        self.kept: GradientOperator | None = None
        self.is_unscaled, self.scale = False, 1.0

    @property
    def is_zero(self) -> bool:
        """Whether there is nothing in it."""
        return self.low_rank is None and self.kept is None

    def matrix(self) -> Tensor | None:
        """What it stands for ``(..., m, n)``, real or complex; None for zero."""
        if self.low_rank is not None:
            matrix = self.low_rank.matrix()
        elif self.kept is not None:
            matrix = self.kept.dense()
        else:
            return None
        return matrix if self.scale == 1 else matrix * self.scale

    def write(self, matrix: Tensor) -> None:
        """Becomes a matrix that something has made of what it read."""
        self.low_rank, self.kept = None, DenseGradient(matrix)
        if self.scale != 1:
            self.is_unscaled, self.scale = False, 1.0

    def norm(self, dtype: torch.dtype) -> Tensor | None:
        """The Frobenius norm of that, without it, in a real dtype; None where it is not known by its factors."""
        if self.low_rank is None:
            return None
        factors = [x.to(dtype.to_complex() if x.is_complex() else dtype) for x in self.low_rank]
        largest = [x.abs().amax().clamp_min(torch.finfo(dtype).tiny) for x in factors]  # or their squares overflow
        left, right = ((x / size).mH @ (x / size) for x, size in zip(factors, largest, strict=True))
        return (left * right.mT).sum().real.clamp_min(0).sqrt() * largest[0] * largest[1] * self.scale

    def scale_(self, factor: Tensor | float) -> None:
        """Multiplies it by a real number."""
        if self.low_rank is not None:
            self.low_rank = LowRank(self.low_rank.left * factor, self.low_rank.right)
        elif self.kept is not None:
            self.kept = DenseGradient(self.kept.dense() * factor)

    def unscale_(self, inverse: Tensor | float) -> None:
        """Takes the scale of a GradScaler, whose inverse is given, out of what others read, where it still is."""
        if not self.is_unscaled:
            self.scale_(inverse)
        self.scale = 1.0

    def is_finite(self) -> bool:
        """Whether it has neither a NaN nor an infinity."""
        if self.low_rank is None:
            return self.kept is None or self.kept.is_finite()
        return all(DenseGradient(factor).is_finite() for factor in self.low_rank)

    def moved(self, fn: Callable[[Tensor], Tensor]) -> "Content":
        """Its tensors through a function of real ones, as ``nn.Module._apply`` takes; complex ones as pairs."""

        def of(t: Tensor) -> Tensor:
            return torch.view_as_complex(fn(torch.view_as_real(t))) if t.is_complex() else fn(t)

        result = Content(is_complex=self.is_complex)
        result.low_rank = None if self.low_rank is None else LowRank(*map(of, self.low_rank))
        result.kept = None if self.kept is None else DenseGradient(of(self.kept.dense()))
        result.is_unscaled, result.scale = self.is_unscaled, self.scale
        return result

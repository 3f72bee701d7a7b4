"""RMSprop without a matrix: the second moments of a gradient's rows and columns, from thin products.

Sources: N. Shazeer, M. Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML 2018, arXiv
1804.04235 (a second moment by its row and column means); the estimate by Gaussian probes is that of M. F. Hutchinson,
Commun. Stat. Simul. Comput. 19 (1990).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg import LowRank
from ..linalg.lowrank import k_major
from .gradient import GradientOperator, WrappedGradient
from .noise import Source, noise

# Note [Preconditioning without a matrix]
# RMSprop divides a gradient elementwise by the root of a running average V of |G|^2, for which it needs G as a matrix
# and a state of its size. With the means R_i of |G|^2 over row i and C_j over column j, V_ij = R_i C_j / mean(R) is
# exact where V has rank one, and diag(R)^(-1/2) G diag(C)^(-1/2) sqrt(mean(R)) is an operator again: samplers apply to
# it unchanged. For Gaussian probes Z the mean over them of |G Z|^2 / n estimates R, that of |G^H Z|^2 / n estimates C,
# without bias and with a relative variance of at most 2 / PROBES, which the running average makes small.
# A row that has never had a gradient is not divided by zero: no moment counts as less than FLOOR times their mean.

PROBES = 4
FLOOR = 1e-8


class Moments(NamedTuple):
    """Means of ``|G|^2``.

    Attributes:
        rows: over each row, real ``(..., m)``.
        columns: over each column, real ``(..., n)``.
    """

    rows: Tensor
    columns: Tensor

    def averaged(self, new: "Moments", alpha: float) -> "Moments":
        """The running average after one more: ``alpha old + (1 - alpha) new``."""
        return Moments(*(_averaged(old, now, alpha) for old, now in zip(self, new, strict=True)))


class Probes(NamedTuple):
    """Products of a gradient with Gaussian probes; they are linear in it, so those of a sum are the sum of those.

    Attributes:
        rows: ``G Z`` ``(..., m, PROBES)``.
        columns: ``G^H Z`` ``(..., n, PROBES)``.
    """

    rows: Tensor
    columns: Tensor

    def moments(self) -> Moments:
        """The estimate of the gradient's moments."""
        m, n = self.rows.size(-2), self.columns.size(-2)
        return Moments(_mean_square(self.rows, n), _mean_square(self.columns, m))


# Note [Probes travel with the sample]
# A product with a thin matrix costs the reading of the gradient, or of its two factors, and over several machines an
# exchange; a few more columns cost next to nothing. So the probes go along in the two products that the samplers "lsi"
# and "power" ask for: those of the columns in the first, G^H u, and those of the rows in the second, G v. The first
# comes before the rows of this step are known: u is scaled by their moments of the step before, as if each row were now
# to have the mean of them. It is a Gaussian test matrix all the same, and decides which row space is found, not what is
# in it. This halves the passes over the 100,000 rows that a recurrent layer has of delta and of h.


class PreconditionedGradient(WrappedGradient):
    """``G / sqrt(V)`` with ``V_ij = R_i C_j / mean(R)``, moments that it learns from the products asked of it.

    See Note [Preconditioning without a matrix] and Note [Probes travel with the sample].

    Args:
        inner: G ``(..., m, n)``.
        before: the running average of its moments up to this step.
        alpha: factor of that in the new average.
        source: of the probes.
        earlier: what was seen of the other parts of a gradient that comes in parts.
    """

    def __init__(
        self, inner: GradientOperator, before: Moments, alpha: float, source: Source, earlier: Probes | None = None
    ) -> None:
        self.inner, self.before, self.alpha, self.source, self.earlier = inner, before, alpha, source, earlier
        self._seen: list[Tensor | None] = [None, None]  # of rows and columns, once a product took the probes along

    def matmul(self, v: Tensor) -> Tensor:
        v = v * self._scales(1)
        return self._product(0, v) * self._scales(0)

    def rmatmul(self, u: Tensor) -> Tensor:
        u = u * self._scales(0)
        return self._product(1, u) * self._scales(1)

    def dense(self) -> Tensor:
        self.probes()
        return self._scales(0) * self.inner.dense() * self._scales(1).mT

    def is_finite(self) -> bool:
        return self.inner.is_finite()

    def probes(self) -> Probes:
        """What probes have seen of G and of the parts before it; those that no product took along are sent now."""
        for side in (0, 1):
            if self._seen[side] is None:
                size = self.shape[-1 - side]
                nothing = torch.empty(*self.shape[:-2], size, 0, dtype=self.dtype, device=self.device)
                self._product(side, nothing)
        rows, columns = self._seen
        assert rows is not None  # since the loop
        assert columns is not None
        return Probes(rows, columns)

    def _product(self, side: int, thin: Tensor) -> Tensor:
        """``G thin`` (side 0) or ``G^H thin`` (side 1), with the probes of that side if they have not been sent."""
        product = (self.inner.matmul, self.inner.rmatmul)[side]
        if self._seen[side] is not None:
            return product(thin)
        shape = (*self.shape[:-2], PROBES, thin.size(-2))
        probes = noise(Tensor.normal_, shape, self.inner, self.source)
        both = product(torch.cat([probes, thin.mT], dim=-2).mT)
        seen = k_major(both[..., :PROBES])
        self._seen[side] = seen if self.earlier is None else seen + self.earlier[side]
        return k_major(both[..., PROBES:])

    def _scales(self, side: int) -> Tensor:
        """Factors of the rows (side 0, ``(..., m, 1)``) or columns: of this step if probes have seen them."""
        moments, seen = self.before[side], self._seen[side]
        if seen is not None:
            moments = _averaged(moments, _mean_square(seen, self.shape[-1 - side]), self.alpha)
        elif side == 0:  # a row without a gradient up to now would get 1e4, too much for half precision when it has one
            moments = _averaged(moments, moments.mean(-1, keepdim=True), self.alpha)
        mean = moments.mean(-1, keepdim=True)
        scales = _inverse_root(moments)
        return (scales if side else scales * torch.where(mean == 0, 1, mean).sqrt()).unsqueeze(-1)


# Note [The length of a preconditioned step]
# RMSprop's quotient is near a matrix of n^2 independent entries of size one, the k largest singular values of which are
# about 2 sqrt(n). A gradient of low rank, as a long recurrence has, remains one between two diagonal matrices: its one
# singular value is near n, and a sample of rank one sees all of it. With this, copying at delay 300 (width 190) took
# steps ten times as long as RMSprop's and lagged: loss 1.2e-2 after 250 steps against 1.9e-3. So a sample is shortened
# to the length 2 sqrt(n k) that it would have without the rank, which gives 1.5e-3; half or three quarters more of it
# makes no difference.


def limited(sample: LowRank) -> LowRank:
    """A preconditioned sample, one of its factors orthonormal, no longer than :func:`longest`."""
    (m, k), n = sample.left.shape[-2:], sample.right.size(-2)
    left, right = (torch.linalg.vector_norm(factor, dim=(-2, -1), keepdim=True) for factor in sample)
    longest = (m * k) ** 0.5 + (n * k) ** 0.5
    return LowRank(sample.left * (longest / (left * right / k**0.5).clamp_min(longest)), sample.right)


def _inverse_root(moments: Tensor) -> Tensor:
    """``moments^(-1/2)``, with the floor; 1 where all are zero, NaN where one has overflowed."""
    floored = torch.maximum(moments, moments.mean(-1, keepdim=True) * FLOOR)
    # 1 / sqrt(inf) would make a finite sample of zeros, and the moments keep the infinity for ever.
    return torch.where(floored == 0, 1, floored).rsqrt() + 0 * floored


def _mean_square(seen: Tensor, size: int) -> Tensor:
    """The means over rows of ``size`` entries that Gaussian probes have seen as ``(..., m, PROBES)``."""
    return seen.abs().square().mean(-1) / size


def _averaged(old: Tensor, new: Tensor, alpha: float) -> Tensor:
    return old * alpha + new * (1 - alpha)

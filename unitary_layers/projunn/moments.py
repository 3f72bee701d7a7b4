"""RMSprop without a matrix: the second moments of a gradient's rows and columns, from thin products.

Sources: N. Shazeer, M. Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML 2018, arXiv
1804.04235 (a second moment by its row and column means); the estimate by Gaussian probes is that of M. F. Hutchinson,
Commun. Stat. Simul. Comput. 19 (1990).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg import LowRank
from .gradient import GradientOperator, ScaledGradient
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
        return Moments(*(old * alpha + now * (1 - alpha) for old, now in zip(self, new, strict=True)))


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
        return Moments(self.rows.abs().square().mean(-1) / n, self.columns.abs().square().mean(-1) / m)


def probe(gradient: GradientOperator, source: Source) -> Probes:
    """Looks at a gradient through probes drawn from the source."""
    *batch, m, n = gradient.shape
    right, left = (noise(Tensor.normal_, (*batch, PROBES, size), gradient, source).mT for size in (n, m))
    return Probes(gradient.matmul(right), gradient.rmatmul(left))


def preconditioned(gradient: GradientOperator, moments: Moments) -> ScaledGradient:
    """``G / sqrt(V)`` with ``V_ij = R_i C_j / mean(R)``; see Note [Preconditioning without a matrix]."""
    rows, columns = (_inverse_root(m) for m in moments)
    return ScaledGradient(gradient, rows * moments.rows.mean(-1, keepdim=True).sqrt(), columns)


# Note [The length of a preconditioned step]
# RMSprop's quotient is near a matrix of n^2 independent entries of size one, the k largest singular values of which are
# about 2 sqrt(n). A gradient of low rank, as a long recurrence has, remains one between two diagonal matrices: its one
# singular value is near n, and a sample of rank one sees all of it. With this, copying at delay 300 (width 190) took
# steps ten times as long as RMSprop's and lagged: loss 1.2e-2 after 250 steps against 1.9e-3. So a sample is shortened
# to the length 2 sqrt(n k) that it would have without the rank, which gives 1.5e-3; half or three quarters more of it
# makes no difference.


def limited(sample: LowRank) -> LowRank:
    """A preconditioned sample, one of its factors orthonormal, of Frobenius norm ``2 sqrt(n k)`` at most."""
    n, k = sample.left.shape[-2:]
    left, right = (torch.linalg.vector_norm(factor, dim=(-2, -1), keepdim=True) for factor in sample)
    longest = 2 * (n * k) ** 0.5
    return LowRank(sample.left * (longest / (left * right / k**0.5).clamp_min(longest)), sample.right)


def _inverse_root(moments: Tensor) -> Tensor:
    """``moments^(-1/2)``, with the floor; 1 where all are zero."""
    floored = torch.maximum(moments, moments.mean(-1, keepdim=True) * FLOOR)
    return torch.where(floored == 0, 1, floored).rsqrt()

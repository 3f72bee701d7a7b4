"""From a gradient to a matrix of rank k that stands for it: the samplers of projUNN.

Sources: B. Kiani, R. Balestriero, Y. LeCun, S. Lloyd, "projUNN: efficient method for training deep networks with
unitary matrices", NeurIPS 2022, arXiv 2203.05483, section 3 (LSI and column sampling); N. Halko, P.-G. Martinsson,
J. A. Tropp, "Finding structure with randomness", SIAM Review 53 (2011), arXiv 0909.4061 (range finder; its expected
error in theorem 10.5); P. Drineas, R. Kannan, M. W. Mahoney, "Fast Monte Carlo algorithms for matrices II", SIAM J.
Comput. 36 (2006) (column sampling, theorem 2).

Every sampler is scale-equivariant: c G gives c times the factors of G, for c from 1e-30 to 1e30 in float32.
"""

import math
from collections.abc import Callable, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from ..linalg import LowRank, orthonormal_basis
from ..linalg.check import PRECISE, check_generator, check_matrix
from ..linalg.lowrank import k_major, qr, unit_columns
from ..linalg.transforms import is_transformed
from ..linalg.unitary import double
from .gradient import DenseGradient, FactoredGradient, GradientOperator
from .noise import Source, noise

Sampler = Callable[[GradientOperator, int, Source, Tensor | None], LowRank]


def lsi(gradient: GradientOperator, rank: int, generator: Source, previous: Tensor | None = None) -> LowRank:
    """The row space of ``R^H G`` for a Gaussian R: ``G V V^H`` with V an orthonormal basis of it. Two thin products.

    Its error is that of the randomised range finder (Halko et al., theorem 10.5): for every split rank = r + p with
    p >= 2, ``E |G - G V V^H|_F^2 <= (1 + r / (p - 1)) sum_{j > r} sigma_j^2``.
    """
    return _half_power_step(gradient, _gaussian_test_matrix(gradient, rank, generator))


def power(gradient: GradientOperator, rank: int, generator: Source, previous: Tensor | None = None) -> LowRank:
    """As :func:`lsi`, started from the left factor of the previous step: block power iteration along the training.

    Where the gradient changes slowly its top singular space is tracked. A column of ``previous`` that is zero (none
    yet, or a gradient that vanished on it) is drawn anew, so that the iteration cannot get stuck.

    Args:
        previous: left factor ``(..., m, k)`` of the step before, or None.
    """
    start = _gaussian_test_matrix(gradient, rank, generator)
    if previous is not None:
        previous = unit_columns(previous)
        start = k_major(torch.where((previous == 0).all(dim=-2, keepdim=True), start, previous))
    return _half_power_step(gradient, start)


def column(gradient: GradientOperator, rank: int, generator: Source, previous: Tensor | None = None) -> LowRank:
    """``U U^H G`` with U the k largest left singular vectors of ``c = min(n, 4 k + 4)`` columns of G.

    The columns are drawn with replacement and a probability that goes with their squared norm. The expected squared
    error (Drineas et al., theorem 2) is at most ``|G - G_k|_F^2 + 2 sqrt(k / c) |G|_F^2``.
    """
    n = gradient.shape[-1]
    norms = gradient.column_norms()
    # cumsum and searchsorted instead of multinomial: batched, and defined for a gradient of zeros.
    cumulative = (norms / _one_where_zero(norms.amax(dim=-1, keepdim=True))).square().cumsum(dim=-1)
    draws = noise(Tensor.uniform_, (*norms.shape[:-1], min(n, 4 * rank + 4)), norms, generator)
    index = torch.searchsorted(cumulative, draws * cumulative[..., -1:], right=True).clamp(max=n - 1)
    chosen = torch.zeros(*index.shape, n, dtype=gradient.dtype, device=gradient.device)
    chosen.scatter_(-1, index.unsqueeze(-1), 1)
    # Drawn with p_j ~ |g_j|^2 and divided by sqrt(c p_j), all columns get the same norm: the scale drops out.
    columns = unit_columns(gradient.matmul(chosen.mT))
    columns = columns / _one_where_zero(torch.linalg.vector_norm(columns, dim=-2, keepdim=True))
    left = k_major(torch.linalg.svd(columns, full_matrices=False).U[..., :rank])
    return LowRank(left, gradient.rmatmul(left))


def svd(gradient: GradientOperator, rank: int, generator: Source = None, previous: Tensor | None = None) -> LowRank:
    """The best approximation of rank k, by the singular value decomposition of the dense gradient: the reference."""
    dense = gradient.dense()
    scale = _at_least_tiny(dense.abs().amax(dim=(-2, -1), keepdim=True))
    u, s, vh = torch.linalg.svd(dense / scale, full_matrices=False)
    left = u[..., :rank] * (s[..., None, :rank] * scale)
    return LowRank(k_major(left), k_major(vh[..., :rank, :].mH))


SAMPLERS: MappingProxyType[str, Sampler] = MappingProxyType({"lsi": lsi, "column": column, "power": power, "svd": svd})

LINEAR_SAMPLERS = ("lsi", "power")  # those that ask for thin products alone


def low_rank(matrix: Tensor, rank: int, sampler: str = "lsi", generator: torch.Generator | None = None) -> LowRank:
    """Approximates a matrix by one of rank k, ``matrix ~ left @ right^H``.

    Args:
        matrix: ``(..., m, n)``, real or complex.
        rank: k, from 1 to min(m, n).
        sampler: "lsi", "column", "power" (which without a step before it is lsi) or "svd".
        generator: source of the random numbers; torch's default one if None.

    Returns:
        Factors ``left (..., m, k)`` and ``right (..., n, k)``.

    Raises:
        TypeError, ValueError: for an unknown sampler, a rank out of range, a matrix that is not a dense, finite one of
            at least single precision.
    """
    if sampler not in tuple(SAMPLERS):
        raise ValueError(f"expected a sampler of {sorted(SAMPLERS)}, got {sampler!r}")
    check_generator(generator)
    check_matrix("matrix", matrix, PRECISE)
    if not isinstance(rank, int) or not 1 <= rank <= min(matrix.shape[-2:]):
        raise ValueError(f"expected a rank from 1 to min(m, n) = {min(matrix.shape[-2:])}, got {rank!r}")
    gradient = DenseGradient(matrix)
    if not is_transformed() and not gradient.is_finite():
        raise ValueError(f"expected a finite matrix, got NaN or infinity in shape {tuple(matrix.shape)}")
    sample = SAMPLERS[sampler](gradient, rank, generator, None)
    if not is_transformed() and not all(DenseGradient(factor).is_finite() for factor in sample):
        raise ValueError(f"expected a matrix whose products do not overflow, got numbers up to {matrix.abs().max():g}")
    return sample


class LowRankGradient(FactoredGradient):
    """A gradient that has been sampled already, or the sum of some that have."""

    @classmethod
    def of(cls, matrix: LowRank) -> "LowRankGradient":
        """The gradient ``(..., m, n)`` with the k-major factors of a matrix."""
        return cls(matrix.left.mT, matrix.right.mT)

    @property
    def low_rank(self) -> LowRank:
        """G by its factors."""
        return LowRank(self.delta.mT, self.input.mT)

    def scale(self, factor: float) -> "LowRankGradient":
        return LowRankGradient.of(self.low_rank.scale(factor))


def side_by_side(matrices: Sequence[LowRank]) -> LowRank:
    """The sum of matrices, by their k-major factors side by side."""
    left, right = zip(*matrices, strict=True)
    return LowRank(*(torch.cat([factor.mT for factor in factors], dim=-2).mT for factors in (left, right)))


def recompressed(matrix: LowRank, rank: int) -> LowRank:
    """The best approximation of rank k of a sum of thin factors, without forming it; ``matrix`` itself if it is thin.

    Factors ``(..., n, c)`` cost two QR decompositions of them and the singular values of a c x c matrix.
    """
    if matrix.rank <= rank:
        return matrix
    (left, left_r), (right, right_r) = (qr(unit_columns(factor)) for factor in matrix)
    scales = [factor.abs().amax(dim=-2, keepdim=True) for factor in matrix]
    core = (left_r * scales[0]) @ (right_r * scales[1]).mH
    largest = _at_least_tiny(core.abs().amax(dim=(-2, -1), keepdim=True))
    if not torch.isfinite(largest).all():  # no decomposition; whoever uses it will see that it is not finite
        return LowRank(*(factor[..., :rank] * math.nan for factor in matrix))
    u, s, vh = torch.linalg.svd(core / largest, full_matrices=False)
    kept = u[..., :rank] * (s[..., None, :rank] * largest)
    return LowRank(k_major(left @ kept), k_major(right @ vh[..., :rank, :].mH))


def projected(matrix: LowRank, rank: int) -> LowRank:
    """As :func:`recompressed`, in half of its time, of a matrix whose right factor is of order 1.

    The right singular vectors are found as eigenvectors of a c x c Gram matrix, so that what is below the square root
    of the rounding unit, relative to the largest singular value, may be lost. In double precision, for in single LAPACK
    gives up on a matrix of small rank with columns of many sizes, the smallest of which underflow when squared.
    """
    right, r = qr(matrix.right)
    left = matrix.left @ r.mH
    scaled = left / _at_least_tiny(left.abs().amax(dim=(-2, -1), keepdim=True))
    kept = torch.linalg.eigh(double(scaled.mH @ scaled)).eigenvectors[..., -rank:].to(left.dtype)
    return LowRank(k_major(left @ kept), k_major(right @ kept))


def _half_power_step(gradient: GradientOperator, start: Tensor) -> LowRank:
    """``G V V^H`` with V an orthonormal basis of ``G^H start``; ``start`` is k-major ``(..., m, k)``."""
    right = orthonormal_basis(gradient.rmatmul(start))
    return LowRank(gradient.matmul(right), right)


def _gaussian_test_matrix(gradient: GradientOperator, rank: int, generator: Source) -> Tensor:
    """k-major Gaussian ``(..., m, k)`` of the gradient's dtype."""
    *batch, m, _ = gradient.shape
    return noise(Tensor.normal_, (*batch, rank, m), gradient, generator).mT


def _at_least_tiny(x: Tensor) -> Tensor:
    """A divisor that leaves what is zero alone; no less than tiny, since complex numbers are multiplied by inverses."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def _one_where_zero(x: Tensor) -> Tensor:
    """``x`` with ones for its zeros: a divisor that leaves what is zero alone."""
    return torch.where(x == 0, 1, x)

"""projUNN-D of rectangles: the nearest matrix with orthonormal rows to one that had them before a low-rank update.

Source: B. Kiani, R. Balestriero, Y. LeCun, S. Lloyd, arXiv 2203.05483, section 3, where matrices are square.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..linalg import LowRank, orthonormal_basis
from ..linalg.thin import thin_times, times_thin
from ..linalg.transforms import is_transformed
from ..linalg.unitary import double

# Note [The nearest isometry]
# Let W (..., m, n) have orthonormal rows, m < n, and let the r = min(m, 2 k) columns of P be an orthonormal basis of
# [a, W b], in the space of the outputs. The adjoint W^H + b a^H takes P to X = W^H P + b (a^H P), and all that is
# orthogonal to P to something orthogonal to X, as W^H does. So the nearest isometry has the polar factor of X for X.
# X lies in the span of W^H P and of N, an orthonormal basis of what b has outside the rows of W, b = W^H W b + N nu:
#     X = [W^H P, N] x,    x = [I + (P^H W b) (a^H P);  nu (a^H P)]
# whose polar factor is that of the small x, r + k by r, in double precision. A square W has no N, and this is Note [A
# rotation in a plane] seen from the other side. Where there is less outside than b has columns, some of an orthonormal
# basis of it are noise: what is left of them outside is short, and they count as zero. And where x is singular, so that
# its polar factor is free to choose, it must not choose those: what is free is completed in the first r rows of x.

NOISE = 8
SHORT = 0.1


def nearest_isometry(weight: Tensor, update: LowRank) -> LowRank:
    """The change of a wide weight to the nearest matrix with orthonormal rows to ``weight + update``.

    Args:
        weight: ``(..., m, n)`` with orthonormal rows, m < n.
        update: k-major factors ``(..., m, k)``, ``(..., n, k)``.

    Returns:
        Factors ``(..., m, r)``, ``(..., n, r)`` with r = min(m, 2 k); see Note [The nearest isometry].

    Raises:
        ValueError: for an update with a NaN or an infinity, or so large that its products overflow.
    """
    a, b = update
    c = times_thin(weight, b)
    p = orthonormal_basis(torch.cat([a.mT, c.mT], dim=-2).mT)
    outside = _outside(weight, b)
    n = _basis_outside(weight, outside)
    right = double(a.mH @ p)
    inside, beyond = double(p.mH @ c) @ right, double(n.mH @ outside) @ right
    refuse_overflow(inside)
    eye = torch.eye(p.size(-1), dtype=right.dtype, device=right.device)
    x = torch.cat([eye + inside, beyond], dim=-2)
    change = completed_polar(x, NOISE * x.size(-2) * torch.finfo(weight.dtype).eps) - pad(eye, (0, 0, 0, n.size(-1)))
    frame = torch.cat([thin_times(p, weight).mH, n], dim=-1)
    return LowRank(p, frame @ change.to(weight.dtype))


def completed_polar(x: Tensor, tolerance: float) -> Tensor:
    """A polar factor of ``x`` ``(..., r + k, r)``, whose free columns lie in the first r rows.

    Args:
        x: in double precision.
        tolerance: singular values up to this fraction of the largest one leave their columns free.
    """
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    kept = (sigma > tolerance * sigma[..., :1]).unsqueeze(-2)
    u = torch.where(kept, u, 0)
    # The kept columns come first, and at most as many directions of the first r rows are theirs.
    free = torch.linalg.svd(u[..., : x.size(-1), :].detach()).U
    return torch.where(kept, u, pad(free, (0, 0, 0, u.size(-2) - u.size(-1)))) @ vh


def refuse_overflow(s: Tensor) -> None:
    """Raises ``ValueError`` where a small matrix of a batch is not finite."""
    if not is_transformed() and not math.isfinite(torch.linalg.vector_norm(s).item()):  # see Note [Under a transform]
        raise ValueError("expected an update whose products with the weight are finite, got NaN, infinity or overflow")


def _basis_outside(weight: Tensor, outside: Tensor) -> Tensor:
    """Orthonormal ``(..., n, k)`` outside the rows of a weight that span ``outside``, or zeros for some of them."""
    # What is left of an orthonormal basis, and not of something that may be tiny, is outside to rounding.
    left = _outside(weight, orthonormal_basis(outside))
    squares, vectors = torch.linalg.eigh(double(left.mH @ left))
    scales = torch.where(squares > SHORT**2, squares.clamp_min(SHORT**2).rsqrt(), 0)
    return left @ (vectors * scales.unsqueeze(-2)).to(left.dtype)


def _outside(weight: Tensor, x: Tensor) -> Tensor:
    """What ``x`` ``(..., n, k)`` has outside the rows of a weight ``(..., m, n)``."""
    return x - thin_times(times_thin(weight, x), weight).mH

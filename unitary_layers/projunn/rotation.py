"""From a unitary matrix and a low-rank update to the next unitary matrix: projUNN-D and projUNN-T.

A rectangular one has orthonormal rows or columns, and goes to the next one of its shape.

Source: B. Kiani, R. Balestriero, Y. LeCun, S. Lloyd, "projUNN: efficient method for training deep networks with unitary
matrices", NeurIPS 2022, arXiv 2203.05483, section 3 (its abstract names the two variants the other way round).
"""

from types import MappingProxyType

import torch
from torch import Tensor

from ..linalg import LowRank, orthonormal_basis
from ..linalg.check import PRECISE, check_dense, check_matrix
from ..linalg.lowrank import k_major
from ..linalg.polar import polar_by_svd
from ..linalg.thin import thin_times, times_thin
from ..linalg.transforms import is_transformed
from ..linalg.unitary import double
from .isometry import nearest_isometry, refuse_overflow

# Note [A rotation in a plane]
# Let c = W^H a and let the r = min(n, 2 k) columns of Q be an orthonormal basis of [b, c]. Then a b^H = W Q s Q^H with
# the small s = (Q^H c) (Q^H b)^H, so that W + a b^H = W (I + Q s Q^H), and everything happens in the plane of Q:
#     D   p = polar factor of I + s         the unitary matrix nearest to W + a b^H
#     T   p = exp((s - s^H) / 2)            the geodesic W exp(skew(W^H a b^H)), skew(x) = (x - x^H) / 2
#     both    W  <-  W + (W Q) (p - I) Q^H
# No eigenvalues of a non-symmetric matrix, no complex numbers for a real W, no inverse of what can be singular: zero
# updates, parallel factors, rank-deficient factors, 2 k >= n and n = 1 take no branch of their own.

# Note [The larger side turns]
# A wide W (..., m, n), m < n, has orthonormal rows: W W^H = I. Then W c = a still, and T is as above, a geodesic of the
# action of U(n) on such matrices. D is not, since W times a polar factor is not the nearest one of them to W + a b^H;
# see Note [The nearest isometry]. A tall W is the adjoint of a wide one, W^H + b a^H.

# Note [The small problem in double precision]
# s and p are r x r and cost nothing, so they are computed in float64 whatever W is. Where I + s has entries of 1e4 next
# to ones, the polar factor would otherwise inherit 1e4 eps; and p is unitary to 1e-16, so that the drift of a float32
# weight is the rounding of W alone.


# Note [An angle too large to be known]
# s has an error of |s| eps, eps that of the weight's precision: beyond 1 / eps radians an angle of projUNN-T has no
# digit left modulo 2 pi. And matrix_exp loses |s| 1e-16 of unitarity, of which a Newton-Schulz round can mend 1e-8.
# So a rotation by more than LONGEST radians (exploding gradients, an absurd learning rate) is one by LONGEST radians in
# the same planes: some unitary matrix, as without that, and not something else. What is not finite is refused.

LONGEST = 2.0**26

# Note [2 x 2 in closed form]
# A rank of one makes 2 x 2 problems, which need no LAPACK call each.
# The polar factor of m = U diag(x, y) V^H goes with m + e^(i phi) adj(m)^H for e^(i phi) = det(m) / |det(m)|, which is
# (x + y) U V^H. Whatever the rounding of phi, it is a multiple of a unitary matrix, so dividing it by its own norm
# gives one to rounding; where m is singular any phi does.
# The exponential of a skew-Hermitian i t I + b, b without trace, is e^(i t) (cos(h) I + sin(h) / h b) with h^2 = det b.


def polar_factor(s: Tensor) -> Tensor:
    """The unitary matrix nearest to ``I + s``, of ``s`` ``(..., r, r)`` in double precision."""
    m = _plus_identity(s, 1.0)
    return _polar_factor_2x2(m) if s.size(-1) == 2 else polar_by_svd(m)


def _polar_factor_2x2(m: Tensor) -> Tensor:
    """See Note [2 x 2 in closed form]."""
    largest = m.abs().amax(dim=(-2, -1), keepdim=True)
    m = torch.where(largest == 0, torch.eye(2, dtype=m.dtype, device=m.device), m / largest)
    a, b, c, d = m.flatten(-2).unbind(-1)
    determinant = a * d - b * c
    phase = torch.where(determinant == 0, 1, determinant.sgn())
    adjugate = torch.stack([d, -c, -b, a], dim=-1).conj().unflatten(-1, (2, 2))
    multiple = m + phase[..., None, None] * adjugate
    return multiple * (2**0.5 / torch.linalg.vector_norm(multiple, dim=(-2, -1), keepdim=True))


def exponential(s: Tensor) -> Tensor:
    """``exp((s - s^H) / 2)`` of ``s`` ``(..., r, r)`` in double precision, a unitary matrix."""
    skew = (s - s.mH) / 2
    if s.size(-1) == 2:
        return _exponential_2x2(skew)
    p = torch.linalg.matrix_exp(skew)
    # The squarings of matrix_exp lose |s| eps of unitarity; one Newton-Schulz round squares that error.
    return p * 1.5 - p @ (p.mH @ p) * 0.5


def _may_be_long(s: Tensor) -> bool:
    """Whether a small matrix of a batch may have to be shortened."""
    return is_transformed() or torch.linalg.vector_norm(s).item() > LONGEST


def _shortened(s: Tensor) -> Tensor:
    """``s`` ``(..., r, r)`` of no more than LONGEST; see Note [An angle too large to be known]."""
    return s * (LONGEST / torch.linalg.vector_norm(s, dim=(-2, -1), keepdim=True).clamp_min(LONGEST))


def _exponential_2x2(skew: Tensor) -> Tensor:
    """See Note [2 x 2 in closed form]."""
    if not skew.is_complex():
        return _exponential_without_trace(skew)
    turn = skew.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(2, dtype=skew.dtype, device=skew.device)
    return _exponential_without_trace(skew - turn * eye) * turn.exp()


def _exponential_without_trace(skew: Tensor) -> Tensor:
    angle = torch.linalg.vector_norm(skew, dim=(-2, -1), keepdim=True) / 2**0.5
    p = skew * (angle.sin() / angle.clamp_min(torch.finfo(angle.dtype).tiny))
    p.diagonal(dim1=-2, dim2=-1).add_(angle.cos().squeeze(-1))
    return p


VARIANTS = MappingProxyType({"D": polar_factor, "T": exponential})


def rotation(weight: Tensor, update: LowRank, variant: str) -> LowRank:
    """The change of a unitary weight as a low-rank matrix: the next weight is ``weight + left @ right^H``.

    Args:
        weight: unitary ``(..., m, n)``, with orthonormal rows or columns; row-major is fastest.
        update: factors ``(..., m, k)``, ``(..., n, k)`` of the update a b^H, minus the learning rate times the sampled
            gradient.
        variant: "D" or "T".

    Returns:
        k-major factors ``(..., m, r)``, ``(..., n, r)``; r at most 2 k, and at most the larger side.

    Raises:
        ValueError: for an update with a NaN or an infinity, or so large that its products overflow.
    """
    m, n = weight.shape[-2:]
    if m > n:  # see Note [The larger side turns]
        return rotation(weight.mH, update.mH, variant).mH
    if m < n and variant == "D":
        return nearest_isometry(weight, update)
    q, _, s = plane_of(LowRank(thin_times(update.left, weight).mH, update.right))
    if variant == "T" and _may_be_long(s):
        s = _shortened(s)
    p = VARIANTS[variant](s)
    return LowRank(times_thin(weight, q) @ _plus_identity(p, -1.0).to(weight.dtype), q)


def plane_of(update: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """The plane of an update in the frame of the weight, and its matrix there; see Note [A rotation in a plane].

    Args:
        update: factors c and b ``(..., n, k)`` of ``W^H (a b^H)``.

    Returns:
        Q ``(..., n, r)`` with orthonormal columns, k-major; and in double precision ``Q^H c`` ``(..., r, k)`` and s
        ``(..., r, r)``, r = min(n, 2 k).

    Raises:
        ValueError: for an update with a NaN or an infinity, or so large that its products overflow.
    """
    c, b = update
    frame = torch.cat([b.mT, c.mT], dim=-2).mT
    q = orthonormal_basis(frame)
    r = double(q.mH @ frame)
    b_seen, c_seen = r.tensor_split(2, dim=-1)
    s = c_seen @ b_seen.mH
    refuse_overflow(s)
    return q, c_seen, s


def projunn_d(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """projUNN-D: the unitary matrix nearest to ``W + a b^H`` (direct projection; arXiv 2203.05483, section 3).

    Of a rectangular W it is the nearest matrix with orthonormal rows or columns. Where ``W + a b^H`` is singular the
    nearest one is not unique and one of them is returned.

    Args:
        weight: unitary ``(..., m, n)``, with orthonormal rows or columns; real or complex.
        a: ``(..., m, k)``, minus the learning rate times the left factor of the gradient.
        b: ``(..., n, k)``, the right factor of the gradient.

    Returns:
        The new weight ``(..., m, n)``; the arguments are left as they are.

    Raises:
        TypeError, ValueError: for a weight that is not dense and of at least single precision, or factors that do not
            fit it in layout, shape, dtype or device, or whose products are not finite.
    """
    return _rotated(weight, a, b, "D")


def projunn_t(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """projUNN-T: the geodesic step ``W exp(skew(W^H a b^H))`` along the projection of the update to the tangent space.

    The rotation angles, in radians, are the eigenvalues of the skew part; they wrap around at 2 pi. A tall W turns from
    the left, ``exp(skew(a b^H W^H)) W``; see Note [The larger side turns].

    Args:
        weight: unitary ``(..., m, n)``, with orthonormal rows or columns; real or complex.
        a: ``(..., m, k)``, minus the learning rate times the left factor of the gradient.
        b: ``(..., n, k)``, the right factor of the gradient.

    Returns:
        The new weight ``(..., m, n)``; the arguments are left as they are.

    Raises:
        TypeError, ValueError: for a weight that is not dense and of at least single precision, or factors that do not
            fit it in layout, shape, dtype or device, or whose products are not finite.
    """
    return _rotated(weight, a, b, "T")


def _rotated(weight: Tensor, a: Tensor, b: Tensor, variant: str) -> Tensor:
    check_matrix("weight", weight, PRECISE)
    for name, factor in (("a", a), ("b", b)):
        check_dense(name, factor)
    *batch, m, n = weight.shape
    for name, factor, side in (("a", a, m), ("b", b, n)):
        if factor.shape != (*batch, side, *a.shape[-1:]):
            expected = f"({', '.join(map(str, (*batch, side)))}, k)"
            raise ValueError(f"expected {name} of shape {expected}, got {tuple(a.shape)} and {tuple(b.shape)}")
        if factor.dtype != weight.dtype or factor.device != weight.device:
            expected = f"{weight.dtype} on {weight.device}"
            raise ValueError(f"expected {name} of {expected} as the weight, got {factor.dtype} on {factor.device}")
    return weight + rotation(weight, LowRank(k_major(a), k_major(b)), variant).matrix()


def _plus_identity(x: Tensor, factor: float) -> Tensor:
    """``x + factor I``, for ``x`` ``(..., r, r)``."""
    x = x.clone()
    x.diagonal(dim1=-2, dim2=-1).add_(factor)
    return x

"""Unitary matrices: draw one, find the nearest one, measure how far a matrix is from being one.

Sources: F. Mezzadri, "How to generate random matrices from the classical compact groups", Notices of the AMS 54 (2007),
arXiv math-ph/0609050; N. J. Higham, "Functions of Matrices" (2008), chapter 8 (polar decomposition).
"""

import torch
from torch import Tensor

from .check import check_dtype, check_matrix
from .transforms import is_transformed

# Note [Double precision off the hot path]
# Drawing, repairing and measuring a unitary matrix happens rarely, so it is done in float64 (complex128) and rounded
# once. A float32 matrix that was rounded from an exactly unitary one has |W^H W - I|_F of about sqrt(n) eps / 2; the
# product W^H W alone, computed in float32, already has an error of about n eps / 3: at n = 256 that is 5e-6 of noise on
# top of a true 5e-7.


def double(x: Tensor) -> Tensor:
    """``x`` in float64, or in complex128 where it is complex."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def haar_unitary(
    n: int,
    *,
    batch: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws unitary (real ``dtype``: orthogonal) matrices from the Haar measure, the uniform one of the group.

    Args:
        n: size of a matrix.
        batch: shape of the batch in front of the matrices.
        generator: source of the random numbers; torch's default one if None.
        dtype: real or complex floating point type; torch's default one if None.
        device: where the result lies; the generator's device must be the same.

    Returns:
        Contiguous tensor ``(*batch, n, n)``.

    Raises:
        TypeError, ValueError: if ``n`` is no integer or negative, or ``dtype`` not a floating point one.
    """
    if not isinstance(n, int):
        raise TypeError(f"expected a matrix size n >= 0, an integer, got {n!r}")
    if n < 0:
        raise ValueError(f"expected a matrix size n >= 0, got {n}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    check_dtype("matrices", dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    q, r = torch.linalg.qr(torch.randn(*batch, n, n, dtype=wide, device=device, generator=generator))
    # QR is unique, and then Q is Haar distributed, only with a positive diagonal of R (Mezzadri, section 5).
    phase = torch.sgn(r.diagonal(dim1=-2, dim2=-1))
    # contiguous: qr returns column-major matrices, which are several times slower to update in place.
    return (q * phase.unsqueeze(-2)).to(dtype).contiguous()


def unitarity_error(w: Tensor) -> Tensor:
    """Distance from being unitary, the Frobenius norm ``|W^H W - I|_F`` over the last two dimensions.

    A wide matrix cannot have orthonormal columns; there the rows are measured, ``|W W^H - I|_F``.

    Args:
        w: ``(..., m, n)``, real or complex.

    Returns:
        Real tensor ``(...)`` in the precision of ``w`` (at least float32), computed in float64.

    Raises:
        TypeError, ValueError: for what is not a dense floating point matrix.
    """
    check_matrix("w", w)
    real = torch.promote_types(w.real.dtype if w.is_complex() else w.dtype, torch.float32)
    return torch.linalg.matrix_norm(_deviation(double(w))).to(real)


def _deviation(x: Tensor) -> Tensor:
    """``X^H X - I`` of a tall or square ``x`` ``(..., m, n)``, ``X X^H - I`` of a wide one."""
    gram = x.mH @ x if x.size(-2) >= x.size(-1) else x @ x.mH
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return gram


def nearest_unitary(w: Tensor) -> Tensor:
    """The unitary matrix nearest to ``w`` in every unitarily invariant norm: the polar factor ``W (W^H W)^(-1/2)``.

    Near the manifold by Newton-Schulz iteration, elsewhere by a singular value decomposition. Where ``w`` is singular
    the nearest matrix is not unique and one of them is returned. A rectangular ``w`` gives orthonormal rows or columns.
    Differentiable, but far from the manifold only where no two singular values are equal, as ``torch.linalg.svd``.

    Args:
        w: ``(..., m, n)``, real or complex.

    Returns:
        Contiguous tensor of the shape and dtype of ``w``.

    Raises:
        TypeError, ValueError: for what is not a dense floating point matrix.
        ValueError: if ``w`` has a NaN or an infinity.
    """
    check_matrix("w", w)
    if is_transformed():
        return polar_by_svd(double(w)).to(w.dtype).contiguous()
    if not torch.isfinite(w).all():
        raise ValueError(f"expected a finite matrix, got NaN or infinity in a tensor of shape {tuple(w.shape)}")
    x = double(w)
    deviation = _deviation(x)
    error = max(torch.linalg.matrix_norm(deviation).flatten().tolist(), default=0.0)
    if error < 0.5:
        polar = _polar_by_newton_schulz(x, deviation, error, torch.finfo(w.dtype).eps / 100)
    else:
        polar = polar_by_svd(x)
    return polar.to(w.dtype).contiguous()


# Note [The cost of a retraction]
# A round of Newton-Schulz makes of the error e = |X^H X - I| at most 3/4 e^2 + e^3/4: seven rounds take 0.5 to below
# 1e-16, but one takes the 1e-5 of a drifted float32 weight to 1e-10, a thousandth of what storing it in float32 costs.
# So as many rounds are made as the error asks for, and the matrix that measures it serves the first of them: a
# retraction is two products of n x n matrices, 4 n^3 operations.


def _polar_by_newton_schulz(x: Tensor, deviation: Tensor, error: float, tolerance: float) -> Tensor:
    """Polar factor of ``x`` ``(..., m, n)`` in double precision (Higham, eq. 8.20).

    Args:
        x: to be moved.
        deviation: ``X^H X - I`` (of a wide one ``X X^H - I``).
        error: its largest norm, less than 1.
        tolerance: what is to be left of it; see Note [The cost of a retraction].
    """
    tall = x.size(-2) >= x.size(-1)
    while error > tolerance:
        x = x - (x @ deviation if tall else deviation @ x) * 0.5
        error = 0.75 * error**2 + 0.25 * error**3
        if error > tolerance:
            deviation = _deviation(x)
    return x


def polar_by_svd(x: Tensor) -> Tensor:
    """Polar factor of any ``x`` ``(..., m, n)`` in double precision."""
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh

"""Unitary matrices: draw one, find the nearest one, measure how far a matrix is from being one.

Sources: F. Mezzadri, "How to generate random matrices from the classical compact groups", Notices of the AMS 54 (2007),
arXiv math-ph/0609050.
"""

import torch
from torch import Tensor

from .check import check_dtype, check_matrix
from .polar import deviation_of, polar_factor

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
    columns: int | None = None,
    *,
    batch: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws unitary (real ``dtype``: orthogonal) matrices from the Haar measure, the uniform one of the group.

    Rectangles have orthonormal rows or columns and are as uniform: parts of square ones.

    Args:
        n: number of rows.
        columns: as many as rows if None.
        batch: shape of the batch in front of the matrices.
        generator: source of the random numbers; torch's default one if None.
        dtype: real or complex floating point type; torch's default one if None.
        device: where the result lies; the generator's device must be the same.

    Returns:
        Contiguous tensor ``(*batch, n, columns)``.

    Raises:
        TypeError, ValueError: if a size is no integer or negative, or ``dtype`` not a floating point one.
    """
    columns = n if columns is None else columns
    for size in (n, columns):
        if not isinstance(size, int):
            raise TypeError(f"expected a matrix size n >= 0, an integer, got {size!r}")
        if size < 0:
            raise ValueError(f"expected a matrix size n >= 0, got {size}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    check_dtype("matrices", dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    tall = (*batch, max(n, columns), min(n, columns))
    q, r = torch.linalg.qr(torch.randn(tall, dtype=wide, device=device, generator=generator))
    # QR is unique, and then Q is Haar distributed, only with a positive diagonal of R (Mezzadri, section 5).
    phase = torch.sgn(r.diagonal(dim1=-2, dim2=-1))
    # contiguous: qr returns column-major matrices, which are several times slower to update in place.
    q = q * phase.unsqueeze(-2)
    return (q if n >= columns else q.mT).to(dtype).contiguous()


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
    return torch.linalg.matrix_norm(deviation_of(double(w))).to(real)


def nearest_unitary(w: Tensor) -> Tensor:
    """The unitary matrix nearest to ``w`` in every unitarily invariant norm: the polar factor ``W (W^H W)^(-1/2)``.

    Near the manifold by Newton-Schulz iteration, elsewhere by a singular value decomposition. Where ``w`` is singular
    the nearest matrix is not unique and one of them is returned. A rectangular ``w`` gives orthonormal rows or columns.
    Differentiable where ``w`` has full rank, any number of times, in backward mode.

    Args:
        w: ``(..., m, n)``, real or complex.

    Returns:
        Contiguous tensor of the shape and dtype of ``w``.

    Raises:
        TypeError, ValueError: for what is not a dense floating point matrix.
        ValueError: if ``w`` has a NaN or an infinity.
        RuntimeError: for a derivative in forward mode (``jacfwd``, ``hessian``; take ``jacrev``).
    """
    check_matrix("w", w)
    return polar_factor(double(w), torch.finfo(w.dtype).eps / 100).to(w.dtype).contiguous()

"""Rotations in a few planes, by the vectors that span these."""

import torch
from torch import Tensor

from .products import Words

# Note [The exponential of thin factors]
# With the r = 2 k columns of U = [A, B] and J = [[0, I], [-I, 0]] it is S = A B^H - B A^H = U J U^H, and as
# S^m = U (J G)^(m - 1) J U^H for G = U^H U,
#     exp(S) = I + U f(J G) J U^H,    f(z) = (exp(z) - 1) / z = sum z^(m - 1) / m!,
# and f(z) is the corner of exp([[z, I], [0, 0]]). No basis of the planes is asked for, so that vectors may be zero or
# parallel, and have a gradient. All of it is taken in double precision: then I + left right^H is unitary to the
# rounding of its factors, however they lie.


def rotations(planes: Tensor) -> Words:
    """``exp(A B^H - B A^H)`` of vectors ``(V, 2, k, n)``, the rows of A^T and of B^T, by thin factors ``(V, n, 2 k)``.

    In the precision of the vectors, but at least float32. See Note [The exponential of thin factors].
    """
    k = planes.size(-2)
    precise = planes.to(torch.complex128 if planes.is_complex() else torch.float64)
    u = precise.flatten(1, 2).mT
    eye = torch.eye(2 * k, dtype=u.dtype, device=u.device)
    j = torch.cat([eye[k:], -eye[:k]])
    z = j @ (u.mH @ u)
    top = torch.cat([z, eye.expand_as(z)], dim=-1)
    corner = torch.linalg.matrix_exp(torch.cat([top, torch.zeros_like(top)], dim=-2))[..., : 2 * k, 2 * k :]
    dtype = planes.dtype if planes.is_complex() else torch.promote_types(planes.dtype, torch.float32)
    return Words((u @ corner @ j).to(dtype), u.to(dtype))

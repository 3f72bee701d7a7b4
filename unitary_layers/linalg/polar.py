"""The polar factor of a matrix, which is the nearest unitary one, and its derivatives.

Source: N. J. Higham, "Functions of Matrices" (2008), chapter 8 (polar decomposition).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .transforms import is_transformed


def polar_factor(x: Tensor, tolerance: float) -> Tensor:
    """The polar factor of any ``x``, with derivatives by a rule of its own.

    Args:
        x: ``(..., m, n)`` in double precision.
        tolerance: what is to be left of the ``|X^H X - I|`` of a matrix near the manifold.

    Raises:
        ValueError: for a NaN or an infinity.
        RuntimeError: for a derivative in forward mode.
    """
    return _Polar.apply(x, tolerance) if _is_differentiated(x) else _value(x, tolerance)


def _is_differentiated(x: Tensor) -> bool:
    """Whether there may be a derivative to take by a rule of our own, or numbers that only a Function gets to see."""
    if torch._C._are_functorch_transforms_active():
        return True
    if is_transformed():  # an export or a trace keeps the operations and no rules
        return False
    return (x.requires_grad and torch.is_grad_enabled()) or unpack_dual(x).tangent is not None


def _value(x: Tensor, tolerance: float) -> Tensor:
    """:func:`polar_factor` by numbers."""
    if x.is_meta or is_transformed():  # here an export or a trace: without numbers
        return polar_by_svd(x)
    if not torch.isfinite(x).all():
        raise ValueError(f"expected a finite matrix, got NaN or infinity in a tensor of shape {tuple(x.shape)}")
    deviation = deviation_of(x)
    errors = torch.linalg.matrix_norm(deviation)
    error = float(errors.amax()) if errors.numel() else 0.0  # NaN, as of what overflows, is not less than 0.5
    if not error < 0.5:
        return polar_by_svd(x)
    return _by_newton_schulz(x, deviation, error, tolerance) if error > tolerance else x.clone()


def deviation_of(x: Tensor) -> Tensor:
    """``X^H X - I`` of a tall or square ``x`` ``(..., m, n)``, ``X X^H - I`` of a wide one."""
    gram = x.mH @ x if x.size(-2) >= x.size(-1) else x @ x.mH
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return gram


# Note [The cost of a retraction]
# A round of Newton-Schulz makes of the error e = |X^H X - I| at most 3/4 e^2 + e^3/4: seven rounds take 0.5 to below
# 1e-16, but one takes the 1e-5 of a drifted float32 weight to 1e-10, a thousandth of what storing it in float32 costs.
# So as many rounds are made as the error asks for, and the matrix that measures it serves the first of them: a
# retraction is two products of n x n matrices, 4 n^3 operations.


def _by_newton_schulz(x: Tensor, deviation: Tensor, error: float, tolerance: float) -> Tensor:
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
            deviation = deviation_of(x)
    return x


def polar_by_svd(x: Tensor) -> Tensor:
    """Polar factor of any ``x`` ``(..., m, n)`` in double precision."""
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


# Note [The derivative of the polar factor]
# Of x = P H, P with orthonormal columns and H Hermitian, it is dP = P Y + (I - P P^H) dx H^-1, where Y is skew and
# Y H + H Y = P^H dx - dx^H P: this divides by sums of singular values, which may be equal, the SVD's by differences.
# P is the gradient of the nuclear norm, so its derivative is its own adjoint, and one formula serves both directions.
# The equation is one more function with a derivative, which solves such an equation again: so there are all orders.


class _Polar(torch.autograd.Function):
    """:func:`polar_factor`; see Note [The derivative of the polar factor]."""

    @staticmethod
    def forward(x: Tensor, tolerance: float) -> Tensor:
        return _value(x, tolerance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, polar = ctx.saved_tensors
        return _differential(x, polar, grad), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, tolerance: float) -> tuple[Tensor, int]:
        return _Polar.apply(x.movedim(in_dims[0], 0), tolerance), 0


def _differential(x: Tensor, polar: Tensor, d: Tensor) -> Tensor:
    """The derivative of the polar factor at ``x`` ``(..., m, n)`` along ``d``."""
    if x.size(-2) < x.size(-1):
        return _differential(x.mH, polar.mH, d.mH).mH
    h, m = polar.mH @ x, polar.mH @ d
    within = polar @ _Sylvester.apply(h, m - m.mH)
    if x.size(-2) == x.size(-1):
        return within
    identity = torch.eye(h.size(-1), dtype=h.dtype, device=h.device).expand_as(h)
    return within + (d - polar @ m) @ _Sylvester.apply(h, 2 * identity)  # H^-1


class _Sylvester(torch.autograd.Function):
    """The Y of ``Y H + H Y = C`` for a Hermitian positive definite H, all ``(..., n, n)``."""

    @staticmethod
    def forward(h: Tensor, c: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(h)
        return vectors @ (vectors.mH @ c @ vectors / (values[..., :, None] + values[..., None, :])) @ vectors.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        h, y = ctx.saved_tensors
        of_c = _Sylvester.apply(h, grad)
        return -(of_c @ y.mH + y.mH @ of_c), of_c

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], *matrices: Tensor) -> tuple[Tensor, int]:
        n = info.batch_size
        pairs = zip(matrices, in_dims, strict=True)
        batched = (x.expand(n, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in pairs)
        return _Sylvester.apply(*batched), 0

"""Fillers for unitary matrices, in place and without a graph, each with the measure that it samples.

A rectangular one gets orthonormal rows or columns.
"""

import math
from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor

from .linalg import haar_unitary
from .linalg.check import check_generator, check_matrix


@torch.no_grad()
def haar_(tensor: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fills with draws from the Haar measure of the orthogonal group (complex: the unitary group).

    Args:
        tensor: ``(..., m, n)``; filled in place and returned.
        generator: source of the random numbers; torch's default one if None.

    Raises:
        TypeError, ValueError: if the tensor is not a dense floating point matrix.
    """
    check_matrix("tensor", tensor)
    check_generator(generator)
    *batch, m, n = tensor.shape
    device = tensor.device if generator is None else generator.device
    drawn = haar_unitary(m, n, batch=tuple(batch), generator=generator, dtype=tensor.dtype, device=device)
    return tensor.copy_(drawn)


@torch.no_grad()
def identity_(tensor: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fills with identity matrices, of a rectangle with its first rows or columns; nothing is random.

    Source: Q. V. Le, N. Jaitly, G. E. Hinton, arXiv 1504.00941 (recurrent networks of rectified linear units).

    Args:
        tensor: ``(..., m, n)``; filled in place and returned.
        generator: not used.

    Raises:
        TypeError, ValueError: if the tensor is not a dense floating point matrix.
    """
    check_matrix("tensor", tensor)
    return tensor.copy_(torch.eye(*tensor.shape[-2:], dtype=tensor.dtype, device=tensor.device))


@torch.no_grad()
def henaff_(tensor: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fills with plane rotations by angles uniform in [-pi, pi] (complex: with a diagonal of such phases).

    A real matrix whose smaller side is n has n // 2 blocks ``[[cos t, -sin t], [sin t, cos t]]`` on its diagonal, a 1
    last if n is odd, and is zero elsewhere.

    Source: M. Henaff, A. Szlam, Y. LeCun, "Recurrent orthogonal networks and long-memory tasks", arXiv 1602.06662.

    Args:
        tensor: ``(..., m, n)``; filled in place and returned.
        generator: source of the random numbers; torch's default one if None.

    Raises:
        TypeError, ValueError: if the tensor is not a dense floating point matrix.
    """
    return _rotations_(tensor, -math.pi, math.pi, generator)


@torch.no_grad()
def cayley_(tensor: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fills with plane rotations by angles uniform in [0, pi / 2] (complex: with a diagonal of such phases).

    The Cayley transform of skew blocks ``s = tan(t / 2)`` is the rotation by t, which is written here at once.

    Source: K. Helfrich, D. Willmott, Q. Ye, "Orthogonal recurrent neural networks with scaled Cayley transform",
    ICML 2018, arXiv 1707.09520, section 4.3.

    Args:
        tensor: ``(..., m, n)``; filled in place and returned.
        generator: source of the random numbers; torch's default one if None.

    Raises:
        TypeError, ValueError: if the tensor is not a dense floating point matrix.
    """
    return _rotations_(tensor, 0.0, math.pi / 2, generator)


@torch.no_grad()
def timescales_(tensor: Tensor, *, slowest: float = 1e-3, generator: torch.Generator | None = None) -> Tensor:
    """Fills with plane rotations by angles log-uniform in [slowest, pi]: as many slow modes as fast ones.

    A mode with angle t forgets the phase of what it saw after about 1 / t steps, so a recurrence that starts with these
    has memories of every length from one step to ``1 / slowest``.

    Args:
        tensor: ``(..., m, n)``; filled in place and returned.
        slowest: the smallest angle, in radians.
        generator: source of the random numbers; torch's default one if None.

    Raises:
        TypeError, ValueError: if the tensor is not a dense floating point matrix, or for an angle that is not
            between 0 and pi.
    """
    if not 0 < slowest <= math.pi:
        raise ValueError(f"expected slowest to be an angle in (0, pi], got {slowest!r}")
    return _rotations_(tensor, math.log(slowest), math.log(math.pi), generator, torch.exp)


INITS: MappingProxyType[str, Callable[..., Tensor]] = MappingProxyType(
    {"haar": haar_, "identity": identity_, "henaff": henaff_, "cayley": cayley_, "timescales": timescales_}
)


def _rotations_(
    tensor: Tensor,
    low: float,
    high: float,
    generator: torch.Generator | None,
    angle_of: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Fills with rotations by functions of numbers uniform in [low, high], drawn and evaluated in float64."""
    check_matrix("tensor", tensor)
    check_generator(generator)
    n, batch = min(tensor.shape[-2:]), tensor.shape[:-2]
    device = tensor.device if generator is None else generator.device
    count = n if tensor.is_complex() else n // 2
    angles = torch.rand(*batch, count, dtype=torch.float64, device=device, generator=generator) * (high - low) + low
    angles = angle_of(angles.to(tensor.device))
    identity_(tensor)
    if tensor.is_complex():
        tensor.diagonal(dim1=-2, dim2=-1).copy_(torch.polar(torch.ones_like(angles), angles))
        return tensor
    first = torch.arange(count, device=tensor.device) * 2
    cos, sin = angles.cos().to(tensor.dtype), angles.sin().to(tensor.dtype)
    tensor[..., first, first] = cos
    tensor[..., first + 1, first + 1] = cos
    tensor[..., first, first + 1] = -sin
    tensor[..., first + 1, first] = sin
    return tensor

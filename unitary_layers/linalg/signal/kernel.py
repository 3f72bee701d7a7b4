"""Convolution kernels that are orthogonal by construction, small ones from matrices, and what they are as operators.

Sources: Q. Li, S. Haque, C. Anil, J. Lucas, R. Grosse, J.-H. Jacobsen, "Preventing gradient attenuation in Lipschitz
constrained convolutional networks" (BCOP), NeurIPS 2019, arXiv 1911.00937, section 4; L. Xiao et al., "Dynamical
isometry and a mean field theory of CNNs", ICML 2018, arXiv 1806.05393, algorithm 1; strides by T. Boissin, F. Mamalet,
V. Lafargue, M. Serrurier, "An adaptive orthogonal convolution scheme", 2025, arXiv 2501.08005.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..check import REAL, check_dense, check_dtype

# Note [A local kernel from orthogonal matrices]
# The projection P = V V^T of an m x m/2 matrix V with orthonormal columns splits the channels in two halves. To shift
# one half by a pixel against the other, x_t -> P x_t + (I - P) x_{t+1}, is an orthogonal map of periodic signals of any
# length; a kernel of k taps along a side is a product of k - 1 such shifts. A stride s comes last: s x s pixels become
# s^2 channels, which one orthogonal matrix mixes; so k taps with a stride of s have k - s shifts. Each V and the mixing
# matrix moves by projUNN as any other weight.


def shift_count(kernel_size: Sequence[int], stride: Sequence[int]) -> int:
    """Number of half shifts in a kernel of this size; see Note [A local kernel from orthogonal matrices]."""
    return sum(k - s for k, s in zip(kernel_size, stride, strict=True))


def shift_dims(kernel_size: Sequence[int], stride: Sequence[int]) -> list[int]:
    """The side along which each of the half shifts goes: the sides in turn."""
    left = [k - s for k, s in zip(kernel_size, stride, strict=True)]
    return [dim for turn in range(max(left)) for dim in range(len(left)) if turn < left[dim]]


def centred_shifts(channels: int, kernel_size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Matrices ``(f, m, m // 2)`` of half shifts whose product is a shift of all channels by half of the kernel.

    Of two shifts along a side the first moves one half of the channels and the second the other. That makes a centred
    delta where the number of shifts along each side is even, but for one channel of an odd number of them.
    """
    dims, eye = shift_dims(kernel_size, stride), torch.eye(channels)
    swapped = eye.roll(channels // 2, dims=0)  # its first columns are the channels that eye leaves to the second half
    shifts = torch.stack([swapped if dims[:i].count(dim) % 2 else eye for i, dim in enumerate(dims)])
    return shifts[..., : channels // 2]


def local_kernel(mixing: Tensor, shifts: Tensor, kernel_size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """The kernel of a convolution that is orthogonal on periodic signals of any size.

    With ``out = m prod(stride)`` and orthogonal matrices it is an orthogonal operator; with the first rows of an
    orthogonal mixing matrix it has orthonormal rows, with the first columns of one orthonormal columns.

    Args:
        mixing: ``(..., out, m prod(stride))``, the channels of the stride's pixels in the order of ``pixel_unshuffle``.
        shifts: with orthonormal columns ``(..., f, m, m // 2)``, f from :func:`shift_count`.
        kernel_size: of each side, at least the stride.
        stride: of each side.

    Returns:
        ``(..., out, m, *kernel_size)`` for ``torch.nn.functional.conv2d`` and its kin.
    """
    m, sides = shifts.size(-2), len(kernel_size)
    kernel = mixing.unflatten(-1, (m, *stride)).movedim(-sides - 1, -1)  # (..., out, *sides, m)
    for half, dim in zip(shifts.unbind(-3), shift_dims(kernel_size, stride), strict=True):
        stays = _per_pixel(_per_pixel(kernel, half), half.mT)
        kernel = _after(stays, kernel - stays, dim - sides - 1)
    return kernel.movedim(-1, -sides - 1)


def _per_pixel(kernel: Tensor, matrix: Tensor) -> Tensor:
    """``kernel`` ``(..., out, *sides, m)`` times ``matrix`` ``(..., m, r)`` at each output and pixel."""
    flat = kernel.flatten(matrix.ndim - 2, -2)
    return (flat @ matrix).unflatten(-2, kernel.shape[matrix.ndim - 2 : -1])


def _after(stays: Tensor, shifted: Tensor, dim: int) -> Tensor:
    """The kernel with one more pixel along ``dim``: a part that stays, plus another one pixel on."""
    zero = torch.zeros_like(stays.narrow(dim, 0, 1))
    return torch.cat([stays, zero], dim) + torch.cat([zero, shifted], dim)


def blocks_of_kernel(kernel: Tensor, size: tuple[int, ...]) -> Tensor:
    """The blocks of a circular convolution at all frequencies, complex ``(*size, out, in)``.

    Args:
        kernel: ``(out, in, *kernel_size)`` as for ``conv2d`` (a correlation, ``y_p = sum_u k_u x_{p+u}``); wrapped
            around where it is larger than the grid.
        size: of the grid.
    """
    kernel, dims = kernel, tuple(range(2, 2 + len(size)))
    for dim, n in zip(dims, size, strict=True):
        index = torch.arange(kernel.size(dim), device=kernel.device) % n
        shape = [*kernel.shape[:dim], n, *kernel.shape[dim + 1 :]]
        kernel = kernel.new_zeros(shape).index_add(dim, index, kernel)
    return torch.fft.fftn(kernel, dim=dims).conj().movedim((0, 1), (-2, -1))


def kernel_of_blocks(blocks: Tensor) -> Tensor:
    """The kernel ``(out, in, *size)`` whose :func:`blocks_of_kernel` are ``blocks`` ``(*size, out, in)``."""
    sides = blocks.ndim - 2
    spectrum = blocks.conj().movedim((-2, -1), (0, 1))
    return torch.fft.ifftn(spectrum, dim=tuple(range(2, 2 + sides))).real


def support_penalty(kernel: Tensor, support: int | Sequence[int]) -> Tensor:
    """Energy of a kernel outside a window, ``sum |k_u|^2`` over the taps u outside; to be added to a loss.

    A full-support convolution that pays it becomes a local one, and stays exactly orthogonal all the while. Its total
    energy is the number of orthonormal rows or columns of a block.

    Args:
        kernel: ``(out, in, *size)``, as ``OrthogonalConv2d.spatial_kernel()`` returns it: tap 0 is where
            the output pixel lies, negative offsets wrap around.
        support: taps of the window along each side, centred at tap 0 as in a convolution with ``padding="same"``.

    Returns:
        Differentiable tensor ``()``.

    Raises:
        TypeError, ValueError: for a kernel that is not a dense floating point one, or a support that is not of integers
            of at least 1.

    Source: Kiani et al., arXiv 2203.05483, section 3 (local filters).
    """
    check_dense("kernel", kernel)
    check_dtype("kernel", kernel.dtype, REAL)
    sides = kernel.ndim - 2
    if sides < 1:
        raise ValueError(f"expected a kernel (out, in, *size), got shape {tuple(kernel.shape)}")
    support = (support,) * sides if isinstance(support, int) else support
    valid = isinstance(support, Sequence) and len(support) == sides
    if not valid or not all(isinstance(k, int) and k >= 1 for k in support):
        raise ValueError(f"expected a support of {sides} sides of at least 1, got {support!r}")
    inside = torch.ones((), dtype=torch.bool, device=kernel.device)
    for n, k in zip(kernel.shape[2:], support, strict=True):
        offset, k = torch.arange(n, device=kernel.device), min(k, n)
        inside = inside[..., None] & ((offset + (k - 1) // 2) % n < k)
    return kernel.square().sum(dim=(0, 1)).masked_fill(inside, 0).sum()

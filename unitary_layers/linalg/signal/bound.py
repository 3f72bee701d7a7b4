"""How far a convolution is from being an isometry, whatever the size of the image, from its kernel alone.

Source: E. M. Achour, F. Malgouyres, F. Mamalet, "Existence, stability and scalability of orthogonal convolutional
neural networks", JMLR 23:347 (2022), arXiv 2108.05623.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..check import check_dense, check_dtype
from ..unitary import double
from .grid import space_to_depth

# Note [The Gram kernel]
# With a stride the pixels of a stride become channels, and a convolution A is one without a stride. Then A A^H is a
# convolution as well, its taps G_p = sum_t K_(t + p) K_t^H at all offsets p, and so is A^H A. A has orthonormal rows if
# and only if G_p is the identity at p = 0 and zero elsewhere. What is left, E_p, is that of A A^H - I, and as a sum of
# shifts that operator is no larger than sum_p |E_p|, in any norm of matrices. With the spectral norm this is a sharper
# bound than that of the paper (theorem 2), which is (2 floor((k - 1) / s) + 1)^2 sqrt(L) with L = sum_p |E_p|_F^2. A
# periodic image is a restriction of the unbounded one to periodic signals, so the bound holds for all of them. With a
# stride the outputs must be periodic as well: the sides of the image are multiples of it. Where they are not, the last
# output and the first read the same pixels, and a singular value of an isometry may be the root of 2 for each side.


def orthogonality_bound(
    kernel: Tensor, stride: int | Sequence[int] = 1, *, dilation: int | Sequence[int] = 1, groups: int = 1
) -> Tensor:
    """A bound on ``|sigma^2 - 1|`` for all singular values of a convolution with circular padding.

    It holds for all images with sides in multiples of the stride, padded so that there is one output for each stride,
    as ``padding="same"`` does. For other sides, which ``torch.nn.Conv2d`` takes, it is false. It costs a product of the
    kernel with itself, and is zero for an isometry and its adjoint. So it is a certificate of a kernel after an export,
    a rounding to half precision or a quantisation. With more outputs than inputs (``out > in prod(stride)``) it is the
    columns that are to be orthonormal. With zeros around an image singular values are only smaller: ``1 + bound`` is
    one of the largest squared, for images of every size and any number of zeros.

    Args:
        kernel: ``(out, in / groups, *kernel_size)``, real or complex, as ``torch.nn.functional.conv2d`` takes it.
        stride: of each side.
        dilation: distance of taps, of each side.
        groups: number of groups of channels.

    Returns:
        Differentiable tensor ``()``, real, in the precision of the kernel (at least float32), computed in float64.

    Raises:
        TypeError, ValueError: for what is not such a kernel, or options that do not fit to it.

    Example:
        >>> conv = OrthogonalConv2d(4, 4, 3, padding_mode="circular")
        >>> bool(orthogonality_bound(conv.spatial_kernel()) < 1e-5)
        True

    Source: Achour et al., arXiv 2108.05623, theorem 2; see Note [The Gram kernel].
    """
    errors = _errors(kernel, stride, dilation, groups)
    return torch.linalg.matrix_norm(errors, ord=2).sum(-1).amax().to(_precision(kernel))


def orthogonality_penalty(
    kernel: Tensor, stride: int | Sequence[int] = 1, *, dilation: int | Sequence[int] = 1, groups: int = 1
) -> Tensor:
    """The regulariser L that draws an unconstrained kernel towards an isometry: ``|A A^H - I|_F^2`` a pixel.

    Args and raises: as for :func:`orthogonality_bound`.

    Returns:
        Differentiable tensor ``()``, real; zero for an isometry and its adjoint.

    Source: Achour et al., arXiv 2108.05623, equation 3; J. Wang, Y. Chen, R. Chakraborty, S. X. Yu, "Orthogonal
    convolutional neural networks", CVPR 2020, arXiv 1911.12207.
    """
    errors = _errors(kernel, stride, dilation, groups)
    return (errors * errors.conj()).real.sum().to(_precision(kernel))


def _precision(kernel: Tensor) -> torch.dtype:
    return torch.promote_types(kernel.real.dtype if kernel.is_complex() else kernel.dtype, torch.float32)


def _errors(kernel: Tensor, stride: int | Sequence[int], dilation: int | Sequence[int], groups: int) -> Tensor:
    """The taps E_p ``(groups, p, r, r)``, r the smaller side of the operator; see Note [The Gram kernel]."""
    check_dense("kernel", kernel)
    check_dtype("kernel", kernel.dtype)
    sides = kernel.ndim - 2
    if sides < 1 or kernel.numel() == 0:
        raise ValueError(f"expected a kernel (out, in, *kernel_size), got shape {tuple(kernel.shape)}")
    strides, dilations = _per_side("stride", stride, sides), _per_side("dilation", dilation, sides)
    if not isinstance(groups, int) or groups < 1 or kernel.size(0) % groups:
        raise ValueError(f"expected groups that divide the {kernel.size(0)} outputs, got {groups!r}")
    apart = space_to_depth(_spread(double(kernel), strides, dilations), strides)
    return torch.stack([_gram_errors(part) for part in apart.chunk(groups)])


def _per_side(name: str, value: int | Sequence[int], sides: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * sides
    if len(values) != sides or not all(isinstance(v, int) and v >= 1 for v in values):
        raise ValueError(f"expected a {name} of {sides} integers of at least 1, got {value!r}")
    return values


def _spread(kernel: Tensor, strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """The kernel with zeros between its taps, and behind them up to a multiple of the stride."""
    for dim, (s, d) in enumerate(zip(strides, dilations, strict=True), start=2):
        reach = (kernel.size(dim) - 1) * d + 1
        shape = [*kernel.shape[:dim], -(-reach // s) * s, *kernel.shape[dim + 1 :]]
        taps = torch.arange(kernel.size(dim), device=kernel.device) * d
        kernel = kernel.new_zeros(shape).index_add(dim, taps, kernel)
    return kernel


def _gram_errors(kernel: Tensor) -> Tensor:
    """The Gram kernel of one without a stride, less the identity, ``(p, r, r)``; of its smaller side."""
    smaller = kernel if kernel.size(0) <= kernel.size(1) else kernel.transpose(0, 1)
    reach = [n - 1 for n in smaller.shape[2:]]
    convolution = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}.get(len(reach))
    if convolution is None:
        raise ValueError(f"expected a kernel of 1 to 3 sides, got shape {tuple(kernel.shape)}")
    gram = convolution(smaller, smaller.conj(), padding=reach).flatten(2).movedim(-1, 0)
    identity = torch.zeros_like(gram)
    identity[len(gram) // 2] = torch.eye(gram.size(-1), dtype=gram.dtype, device=gram.device)
    return gram - identity

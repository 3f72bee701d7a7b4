"""Transposed convolutions with orthonormal kernels, in the place of ``nn.ConvTranspose1d``, ``2d`` and ``3d``."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Proxy

from ...projunn.rule import UpdateRule
from ..base.forward import watch_own
from ..base.inputs import Sides
from .stiefelnd import StiefelNd, bias_of, kernel_for

CONVOLUTIONS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class StiefelConvTransposeNd(StiefelNd):
    """What the transposed convolutions share; ``sides`` is the number of spatial dimensions.

    See :class:`StiefelConvTranspose2d`.
    """

    is_transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sides,
        stride: Sides = 1,
        padding: Sides = 0,
        output_padding: Sides = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sides = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] = "haar",
        gradient: str = "dense",
        normalize: bool = False,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f"expected padding_mode='zeros' of a transposed convolution, got {padding_mode!r}")
        sizes = (in_channels, out_channels, kernel_size, stride, padding, output_padding, dilation, groups)
        super().__init__(*sizes, bias, padding_mode, device, dtype, update, init, gradient, normalize)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input, output_size)
        watch_own(self)
        kernel = kernel_for(self, f"StiefelConvTranspose{len(self.stride)}d", input)
        cut = [pixels for pixels, _ in self.pads]
        more = self.output_padding if output_size is None else output_padding_of(self, input, output_size)
        convolution = CONVOLUTIONS[len(self.stride)]
        return convolution(input, kernel, bias_of(self), self.stride, cut, more, self.groups, self.dilation)


def output_padding_of(layer: StiefelNd, input: Tensor, output_size: list[int]) -> list[int]:
    """The pixels to be added behind each side, so that the output has this size ``(..., *size)``."""
    sides = len(layer.stride)
    if len(output_size) not in (sides, input.ndim):
        raise ValueError(f"expected an output_size of {sides} or {input.ndim} numbers, got {tuple(output_size)}")
    options = (input.shape[-sides:], output_size[-sides:], layer.stride, layer.pads, layer.dilation, layer.kernel_size)
    more = []
    for n, size, stride, pads, dilation, taps in zip(*options, strict=True):
        least = (n - 1) * stride - sum(pads) + dilation * (taps - 1) + 1
        if not least <= size < least + stride:
            raise ValueError(
                f"expected an output_size from {least} to {least + stride - 1} of a side of {n}, got {size}"
            )
        more.append(size - least)
    return more


class StiefelConvTranspose2d(StiefelConvTransposeNd):
    r"""A transposed convolution with an orthonormal kernel, in the place of ``nn.ConvTranspose2d``.

    It is the adjoint of a convolution with an orthonormal kernel: unfolded to a matrix with a row for each input
    channel, the kernel has orthonormal rows; where it has more rows than columns, orthonormal columns. Its Lipschitz
    constant is that of the convolution; see Note [Lipschitz constant of a kernel]. A state dict of
    ``nn.ConvTranspose2d`` loads, and gives the orthonormal kernel that is nearest to its weight.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps of each side.
        stride: by how much each side grows.
        padding: pixels that are cut off around the output.
        output_padding: pixels that are added behind each side of the output.
        groups: each group of outputs sees one group of inputs; each has a kernel of its own.
        bias: whether to add a bias, which starts at zero.
        dilation: distance of the taps.
        padding_mode: "zeros" and nothing else, as in ``nn.ConvTranspose2d``.
        device: of the parameters.
        dtype: real or complex; a complex layer stores pairs of real numbers.
        update: how the weight moves.
        init: how the weight starts, as in :class:`StiefelConv2d`.
        gradient: "dense", and no other.
        normalize: whether to divide the kernel by its Lipschitz constant, which makes the layer 1-Lipschitz.

    Shape:
        As ``nn.ConvTranspose2d``: input ``(b, in_channels, h, w)`` or without b; ``forward(input, output_size)`` gives
        the output a size that the stride leaves open.

    Attributes:
        weight: the stored parameter ``(in_channels, out_channels / groups, *kernel_size)``, as ``nn.ConvTranspose2d``
            has it (complex: with pairs last).
        bias: ``(out_channels,)`` (complex: ``(out_channels, 2)``) or None.
        lipschitz: by how much the layer enlarges a distance at most, for every size of image.

    Raises:
        ValueError: for an option that ``nn.ConvTranspose2d`` refuses or that is out of range, and in ``forward`` for an
            ``output_size`` that no output has.
        TypeError, RuntimeError: in ``forward``, for an input that ``nn.ConvTranspose2d`` refuses.

    Example:
        >>> layer = StiefelConvTranspose2d(16, 8, 3, stride=2, padding=1)  # was: nn.ConvTranspose2d(16, 8, 3, ...)
        >>> x = torch.randn(2, 16, 5, 5)
        >>> layer(x).shape, layer(x, output_size=(10, 10)).shape
        (torch.Size([2, 8, 9, 9]), torch.Size([2, 8, 10, 10]))
    """

    sides = 2


class StiefelConvTranspose1d(StiefelConvTransposeNd):
    """A transposed convolution with an orthonormal kernel, in the place of ``nn.ConvTranspose1d``.

    Arguments, attributes and errors are those of :class:`StiefelConvTranspose2d`, with one side instead of two.
    """

    sides = 1


class StiefelConvTranspose3d(StiefelConvTransposeNd):
    """A transposed convolution with an orthonormal kernel, in the place of ``nn.ConvTranspose3d``.

    Arguments, attributes and errors are those of :class:`StiefelConvTranspose2d`, with three sides instead of two.
    """

    sides = 3

"""Convolutions with orthonormal kernels, in the place of ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Proxy

from ...linalg.transforms import is_transformed
from ...projunn.rule import UpdateRule
from ..base.forward import watch_own
from ..base.inputs import Sides
from .local import CONVOLUTIONS
from .stiefelnd import StiefelNd, bias_of, kernel_for


class StiefelConvNd(StiefelNd):
    """What the convolutions share; ``sides`` is the number of spatial dimensions. See :class:`StiefelConv2d`."""

    is_transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sides,
        stride: Sides = 1,
        padding: str | Sides = 0,
        dilation: Sides = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] = "haar",
        gradient: str = "dense",
        normalize: bool = False,
    ) -> None:
        sizes = (in_channels, out_channels, kernel_size, stride, padding, 0, dilation, groups)
        super().__init__(*sizes, bias, padding_mode, device, dtype, update, init, gradient, normalize)

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        watch_own(self)
        kernel, padding = kernel_for(self, f"StiefelConv{len(self.stride)}d", input), self.padding
        if self.padding_mode != "zeros":
            around = [pixels for side in reversed(self.pads) for pixels in side]
            input, padding = _padded(input, around, self.padding_mode), "valid"
        convolution = CONVOLUTIONS[len(self.stride)]
        return convolution(input, kernel, bias_of(self), self.stride, padding, self.dilation, self.groups)


def _padded(input: Tensor, around: list[int], mode: str) -> Tensor:
    """``F.pad``, which would lose that the channels of a pixel are kept together, and slow down all that follows."""
    padded = F.pad(input, around, mode)
    if input.ndim != 4 or is_transformed() or not input.is_contiguous(memory_format=torch.channels_last):
        return padded
    return padded if input.is_contiguous() else padded.contiguous(memory_format=torch.channels_last)


class StiefelConv2d(StiefelConvNd):
    r"""A convolution of images with an orthonormal kernel, in the place of ``nn.Conv2d``, with all of its options.

    Its kernel, unfolded to a matrix with a row for each output channel, has orthonormal rows: no two outputs look for
    the same thing. If it has more rows than columns, the columns are orthonormal instead. Unlike
    :class:`OrthogonalConv2d` it is no isometry, but its Lipschitz constant is known; see Note [Lipschitz constant of a
    kernel].

    A state dict of ``nn.Conv2d`` loads, and gives the orthonormal kernel that is nearest to its weight.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps of each side.
        stride: of each side.
        padding: pixels around the image, "same" or "valid".
        dilation: distance of the taps.
        groups: each group of outputs sees one group of inputs; each has a kernel of its own.
        bias: whether to add a bias, which starts at zero.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: of the parameters.
        dtype: real or complex; a complex layer stores pairs of real numbers.
        update: how the weight moves.
        init: how the weight starts: "haar", "dirac" or "identity" (a centred delta, as ``nn.init.dirac_`` makes),
            "henaff", "cayley", "timescales" or a filler of the unfolded kernels.
        gradient: "dense", and no other.
        normalize: whether to divide the kernel by its Lipschitz constant, which makes the layer 1-Lipschitz.

    Shape:
        As ``nn.Conv2d``: input ``(b, in_channels, h, w)`` or without b.

    Attributes:
        weight: the stored parameter ``(out_channels, in_channels / groups, *kernel_size)``, as ``nn.Conv2d`` has it
            (complex: with pairs last).
        bias: ``(out_channels,)`` (complex: ``(out_channels, 2)``) or None.
        lipschitz: by how much the layer enlarges a distance at most, for every size of image.

    Raises:
        ValueError: for an option that ``nn.Conv2d`` refuses or that is out of range.
        TypeError, RuntimeError: in ``forward``, for an input that ``nn.Conv2d`` refuses.

    Example:
        >>> layer = StiefelConv2d(16, 32, 3, stride=2, padding=1)  # was: nn.Conv2d(16, 32, 3, stride=2, padding=1)
        >>> layer(torch.randn(2, 16, 9, 9)).square().sum().backward()
        >>> layer.projunn_step()
        >>> layer.weight.shape, layer.lipschitz
        (torch.Size([32, 16, 3, 3]), 2.0)
    """

    sides = 2


class StiefelConv1d(StiefelConvNd):
    """A convolution of sequences ``(b, in_channels, length)`` with an orthonormal kernel, for ``nn.Conv1d``.

    Arguments, attributes and errors are those of :class:`StiefelConv2d`, with one side instead of two.
    """

    sides = 1


class StiefelConv3d(StiefelConvNd):
    """A convolution of volumes ``(b, in_channels, d, h, w)`` with an orthonormal kernel, for ``nn.Conv3d``.

    Arguments, attributes and errors are those of :class:`StiefelConv2d`, with three sides instead of two.
    """

    sides = 3

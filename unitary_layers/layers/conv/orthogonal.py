"""Convolutions that are orthogonal operators, in the place of ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import Proxy

from ...projunn.rule import UpdateRule
from ..base.forward import watch_own
from ..base.inputs import Sides
from .applied import applied, with_bias
from .orthogonalnd import OrthogonalNd
from .padding import check_padding


class OrthogonalConvNd(OrthogonalNd):
    """What the convolutions share; ``sides`` is the number of spatial dimensions. See :class:`OrthogonalConv2d`."""

    is_transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sides | None = None,
        stride: Sides = 1,
        padding: str | Sides = "same",
        dilation: Sides = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "circular",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_size: Sides | None = None,
        transform: str = "auto",
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] | None = None,
        gradient: str = "dense",
    ) -> None:
        if gradient == "factored" and kernel_size is not None:
            raise ValueError(
                'expected gradient="dense" with a kernel_size: a local kernel is a product of small matrices, whose '
                'gradients have no thin factors; got "factored"'
            )
        sizes = (in_channels, out_channels, kernel_size, stride, dilation, groups)
        super().__init__(*sizes, bias, padding_mode, device, dtype, input_size, transform, update, init, gradient)
        check_padding(padding, self.support, self.stride)

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        watch_own(self)
        return with_bias(self, applied(self, input, transposed=False))

    def adjoint(self, output: Tensor) -> Tensor:
        """The adjoint A^T of the convolution A, without a bias; gradients that come through it are dense.

        It is the inverse where the layer keeps all lengths: ``adjoint(conv(x) - bias) = x`` up to rounding.

        Args:
            output: ``(b, out_channels, *size)`` or without b, as ``forward`` returns it.

        Returns:
            ``(b, in_channels, *size * stride)``, differentiable.

        Raises:
            ValueError: for channels or a size that do not fit.
        """
        watch_own(self)
        return applied(self, output, transposed=True)


class OrthogonalConv2d(OrthogonalConvNd):
    r"""A convolution of images that is an orthogonal map, in the place of ``nn.Conv2d``; circularly padded.

    With as many channels after as before (times the stride's pixels) it keeps every norm and every angle; with more it
    is an isometry into a larger space; with fewer its rows are orthonormal, so that it is 1-Lipschitz and its transpose
    an isometry.

    ``kernel_size=None``: full support. The kernel is as large as the image: one unitary matrix for each pair of
    frequencies f and -f, real orthogonal ones where f = -f (Kiani et al., arXiv 2203.05483, section 3). ``input_size``
    is fixed.

    Otherwise local support, for images of any size: a kernel of this size as a product of orthogonal matrices and
    half-channel shifts (Li et al., arXiv 1911.00937); see Note [A local kernel from orthogonal matrices]. Both are
    trained by the same projUNN step.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps of a side, at least the stride; None for full support.
        stride: of each side. The pixels of a stride become channels first, so that none is lost.
        padding: "same", or the number of pixels with which ``nn.Conv2d`` has outputs of that size too:
            dilation * (kernel_size - 1) // 2, if that leaves no remainder or there is a stride.
        dilation: of a local kernel, without a factor in common with the stride.
        groups: as in ``nn.Conv2d``.
        bias: whether to add a bias, which starts at zero.
        padding_mode: "circular"; or of a local kernel "zeros", with which no distance grows, but what goes over the
            border is lost: the layer is 1-Lipschitz and no isometry.
        device: of the parameters.
        dtype: real floating point type.
        input_size: height and width of the input, for full support.
        transform: "basis" (a product with the real Fourier basis), "fft", or "auto": the first up to 256 points. It
            changes the speed and not the map.
        update: how the weights move.
        init: "local" (for full support: starts as a random convolution with three taps a side), "dirac" (a centred
            delta, as ``nn.init.dirac_`` makes; of an odd number of channels one is off the centre of a local kernel),
            or how each matrix is drawn: "haar", "identity" (for a local kernel as "dirac"), "henaff", "cayley",
            "timescales" or a filler. The default is "local" for full support, "haar" for a local kernel.
        gradient: "dense", or for full support "factored": the fast way, in which backward leaves in ``.grad``
            samples of small rank, kept as their two factors; see Note [Sampling inside backward].

    Shape:
        Input ``(b, in_channels, h, w)`` or without b, output ``(b, out_channels, h / stride, w / stride)``.

    Attributes:
        weight: for full support the orthogonal matrices of the s self-conjugate bins ``(s * groups, m, n)``; else the
            mixing matrices ``(groups, m, n)``.
        weight_pairs: for full support the unitary matrices of the others ``(p * groups, m, n, 2)``, or None.
        shifts: for local support the matrices whose columns span what is not shifted ``(groups * f, c, c // 2)``, or
            None.
        bias: ``(out_channels,)`` or None.

    Raises:
        ValueError: for an option out of range, and in ``forward`` for channels or a size that do not fit.

    Example:
        >>> layer = OrthogonalConv2d(16, 16, 3, padding=1)  # was: nn.Conv2d(16, 16, 3, padding=1)
        >>> x = torch.randn(2, 16, 8, 8)
        >>> layer(x).square().sum().backward()
        >>> layer.projunn_step()
        >>> OrthogonalConv2d(16, 32, stride=2, input_size=8)(x).shape
        torch.Size([2, 32, 4, 4])
    """

    sides = 2


class OrthogonalConv1d(OrthogonalConvNd):
    """A convolution of sequences ``(b, in_channels, length)`` that is an orthogonal map, in the place of ``nn.Conv1d``.

    Arguments, attributes and errors are those of :class:`OrthogonalConv2d`, with one side instead of two.
    """

    sides = 1


class OrthogonalConv3d(OrthogonalConvNd):
    """A convolution of volumes ``(b, in_channels, d, h, w)`` that is an orthogonal map, in the place of ``nn.Conv3d``.

    Arguments, attributes and errors are those of :class:`OrthogonalConv2d`, with three sides instead of two.
    """

    sides = 3

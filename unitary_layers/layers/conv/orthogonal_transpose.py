"""Adjoints of orthogonal convolutions, in the place of ``nn.ConvTranspose1d``, ``2d`` and ``3d``."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import Proxy

from ...projunn.rule import UpdateRule
from ..base.forward import watch_own
from ..base.inputs import Sides
from .applied import applied, with_bias
from .orthogonalnd import OrthogonalNd
from .padding import check_transposed_padding


class OrthogonalConvTransposeNd(OrthogonalNd):
    """What the transposed convolutions share; ``sides`` is the number of spatial dimensions.

    See :class:`OrthogonalConvTranspose2d`.
    """

    is_transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sides | None = None,
        stride: Sides = 1,
        padding: str | Sides = "same",
        output_padding: Sides = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sides = 1,
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
        if gradient == "factored":
            raise ValueError('expected gradient="dense" of a transposed convolution, got "factored"')
        sizes = (in_channels, out_channels, kernel_size, stride, dilation, groups)
        super().__init__(*sizes, bias, padding_mode, device, dtype, input_size, transform, update, init, gradient)
        check_transposed_padding(padding, output_padding, self.support, self.stride)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input, output_size)
        watch_own(self)
        y = with_bias(self, applied(self, input, transposed=True))
        sides = len(self.stride)
        if output_size is not None and list(output_size[-sides:]) != list(y.shape[-sides:]):
            raise ValueError(f"expected the output_size {tuple(y.shape[-sides:])}, got {tuple(output_size)}")
        return y

    def adjoint(self, output: Tensor) -> Tensor:
        """The convolution A of which this layer is the adjoint, without a bias.

        Args:
            output: ``(b, out_channels, *size)`` or without b, as ``forward`` returns it.

        Returns:
            ``(b, in_channels, *size / stride)``, differentiable.

        Raises:
            ValueError: for channels or a size that do not fit.
        """
        watch_own(self)
        return applied(self, output, transposed=False)


class OrthogonalConvTranspose2d(OrthogonalConvTransposeNd):
    r"""The adjoint of an orthogonal convolution, in the place of ``nn.ConvTranspose2d``; periodic.

    A transposed convolution from c to d channels is the adjoint of ``OrthogonalConv2d(d, c, ...)``. Where that keeps
    all lengths, the adjoint undoes it, and the other way round: with at most as many inputs as outputs times the
    stride's pixels (``in_channels <= out_channels * stride^2``) this layer is an isometry, as in a decoder; with more
    it is 1-Lipschitz. A layer that shares its parameters with the convolution undoes that very convolution, and so does
    the method ``adjoint`` of the convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps of a side, at least the stride; None for full support.
        stride: by how much each side grows.
        padding: "same", or with ``output_padding`` the numbers with which ``nn.ConvTranspose2d`` has outputs of
            ``stride`` times the size.
        output_padding: see ``padding``; may be left out with "same".
        groups: as in ``nn.ConvTranspose2d``.
        bias: whether to add a bias, which starts at zero.
        dilation: of a local kernel, without a factor in common with the stride.
        padding_mode: "circular"; or of a local kernel "zeros", with which no distance grows, but what goes over the
            border is lost: the layer is 1-Lipschitz and no isometry.
        device: of the parameters.
        dtype: real floating point type.
        input_size: height and width of the input, for full support.
        transform: as for :class:`OrthogonalConv2d`.
        update: how the weights move.
        init: as for :class:`OrthogonalConv2d`.
        gradient: "dense", and no other.

    Shape:
        Input ``(b, in_channels, h, w)`` or without b, output ``(b, out_channels, h * stride, w * stride)``.
        ``forward(input, output_size)`` takes the size that the output has anyway.

    Attributes:
        weight: as of ``OrthogonalConv2d(out_channels, in_channels, ...)``, and so are ``weight_pairs`` and ``shifts``.
        bias: ``(out_channels,)`` or None.

    Raises:
        ValueError: for an option out of range, and in ``forward`` for channels or sizes that do not fit.

    Example:
        >>> conv = OrthogonalConv2d(4, 16, 3, stride=2, bias=False)
        >>> undo = OrthogonalConvTranspose2d(16, 4, 3, stride=2, bias=False)
        >>> undo.weight, undo.shifts = conv.weight, conv.shifts
        >>> x = torch.randn(2, 4, 8, 8)
        >>> torch.allclose(undo(conv(x)), x, atol=1e-5), torch.allclose(conv.adjoint(conv(x)), x, atol=1e-5)
        (True, True)
    """

    sides = 2


class OrthogonalConvTranspose1d(OrthogonalConvTransposeNd):
    """The adjoint of an orthogonal convolution of sequences, in the place of ``nn.ConvTranspose1d``.

    Arguments, attributes and errors are those of :class:`OrthogonalConvTranspose2d`, with one side instead of two.
    """

    sides = 1


class OrthogonalConvTranspose3d(OrthogonalConvTransposeNd):
    """The adjoint of an orthogonal convolution of volumes, in the place of ``nn.ConvTranspose3d``.

    Arguments, attributes and errors are those of :class:`OrthogonalConvTranspose2d`, with three sides instead of two.
    """

    sides = 3

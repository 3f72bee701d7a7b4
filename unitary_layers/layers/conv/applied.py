"""How an orthogonal convolution and its adjoint are applied to a signal."""

from torch import Tensor

from ..base.forward import factored_weight, in_use
from ..base.inputs import check_input
from .local import LocalSupport
from .orthogonalnd import OrthogonalNd
from .support import support_of


def applied(layer: OrthogonalNd, input: Tensor, transposed: bool) -> Tensor:
    """The convolution of a layer, or its adjoint, without a bias; a function and no method, for scripted layers.

    Args:
        layer: whose matrices are used.
        input: ``(b, channels, *size)`` or without b.
        transposed: whether to apply the adjoint.
    """
    support = support_of(layer._support)
    is_adjoint = isinstance(layer, OrthogonalNd) and layer.is_transposed != transposed
    kind = f"OrthogonalConv{'Transpose' if transposed != is_adjoint else ''}{len(support.stride)}d"
    name = f"{kind}.adjoint" if is_adjoint else kind
    check_input(name, input, layer.weight)
    channels = (support.out_channels if transposed else support.in_channels) * support.groups
    size = None if isinstance(support, LocalSupport) else support.grid if transposed else support.size
    x = _batched(name, input, len(support.stride), channels, size)
    factored = (factored_weight(layer, "weight"), factored_weight(layer, layer._others))
    weights = in_use(layer, "weight"), in_use(layer, layer._others)
    constants = layer._constants if isinstance(layer, OrthogonalNd) else support.constants()  # scripted
    given = (x, *weights, constants)
    y = support.adjoint(*given) if transposed else support.convolve(*given, factored)
    return y if input.ndim == x.ndim else y.squeeze(0)


def with_bias(layer: OrthogonalNd, y: Tensor) -> Tensor:
    """``y`` ``(..., channels, *size)`` with the bias, if the layer has one."""
    sides = len(layer.stride)
    return y if layer.bias is None else y + layer.bias.to(y.dtype).view(-1, *[1] * sides)


def _batched(name: str, input: Tensor, sides: int, channels: int, size: tuple[int, ...] | None) -> Tensor:
    """The input with a batch, after a look at its shape."""
    if input.ndim not in (sides + 1, sides + 2):
        raise ValueError(f"{name}: expected {sides + 1}D (unbatched) or {sides + 2}D input, got {input.ndim}D")
    x = input if input.ndim == sides + 2 else input.unsqueeze(0)
    if x.size(1) != channels:
        raise ValueError(f"{name}: expected {channels} channels, got input of shape {tuple(input.shape)}")
    if size is not None and tuple(x.shape[2:]) != size:
        raise ValueError(f"{name}: expected input_size={size}, got input of size {tuple(x.shape[2:])}")
    return x

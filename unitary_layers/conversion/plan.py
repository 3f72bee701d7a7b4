"""What a layer is to become, worked out without touching it: the way to this package, and the way back."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from ..layers import UnitaryModule
from ..layers.base.forward import value_in_use
from ..layers.conv.local import LocalSupport
from ..layers.conv.orthogonal import OrthogonalConvNd
from ..layers.conv.stiefelnd import StiefelNd
from ..linalg.signal import orthogonality_bound
from ..projunn.rule import UpdateRule
from .kinds import BY_OURS, BY_PLAIN, ISOMETRY_OF, WITHOUT_COUNTERPART, Kind, built
from .swap import Swap, contents_of, parametrizations_of, source_of, unitary_names

NONLINEARITIES = ("tanh", "relu")  # of torch's recurrent layers


class LeaveAlone(Exception):
    """Why a layer stays what it is."""


def forth(layer: nn.Module, update: UpdateRule, start: str, conv: str) -> Swap:
    """How a layer of torch becomes one of this package, as yet without its values.

    Args:
        layer: of a model; it is not touched.
        update: rule of the new layer.
        start: "nearest" or "init"; the new layer has no values of its own but for "init".
        conv: "stiefel" or "isometry"; of the latter it has values too.

    Raises:
        LeaveAlone: if it is to stay as it is.
    """
    kind = _kind_of(layer)
    arguments = kind.arguments(layer)
    plain = built(kind.plain, arguments, device="meta")
    _check_contents(layer, plain)
    is_isometry = conv == "isometry" and kind.plain in ISOMETRY_OF and not _is_pointwise(layer)
    if is_isometry:
        kind = ISOMETRY_OF[kind.plain]
        arguments |= {"padding_mode": "circular"}
    weight = next(layer.parameters())
    place = weight.device if is_isometry or start == "init" else "meta"
    try:
        twin = built(kind.ours, arguments, device=place, dtype=weight.dtype, update=update)
    except ValueError as error:
        raise LeaveAlone(str(error)) from error
    known = frozenset(vars(plain))
    if clash := (set(vars(layer)) - known) & set(vars(twin)):
        raise LeaveAlone(f"it has an attribute {min(clash)!r} of its own, and so has the new layer")
    _check_sources(layer, twin)
    return Swap(layer, twin, {}, known, note="drawn anew, pads circularly" if is_isometry else "")


def back(layer: nn.Module, parent: nn.Module | None) -> Swap:
    """How a layer of this package becomes torch's, with the values that make it do the same.

    Args:
        layer: of a model; it is not touched.
        parent: the module that holds it, or None.

    Raises:
        LeaveAlone: if torch has no such layer.
    """
    if not isinstance(layer, UnitaryModule) or (kind := BY_OURS.get(type(layer))) is None:
        raise LeaveAlone("torch has no such layer")
    arguments, kernel = kind.arguments(layer), None
    if isinstance(layer, OrthogonalConvNd):
        arguments, kernel = _of_isometry(layer, arguments)
    elif isinstance(layer, StiefelNd):
        kernel = layer.spatial_kernel()
    if arguments.get("nonlinearity", "tanh") not in NONLINEARITIES:
        raise LeaveAlone(f"torch's has no nonlinearity {layer.nonlinearity!r}")
    if getattr(layer, "score", "softmax") != "softmax":
        raise LeaveAlone(f"torch's has no score {layer.score!r}")
    if not getattr(layer, "return_sequence", True):
        raise LeaveAlone("torch's returns the states of all time steps")
    if layer.is_complex and "nonlinearity" in arguments:
        raise LeaveAlone("torch's has no complex numbers")
    of_attention = isinstance(parent, (nn.MultiheadAttention, BY_PLAIN[nn.MultiheadAttention].ours))
    cls = NonDynamicallyQuantizableLinear if of_attention and kind.plain is nn.Linear else kind.plain
    twin = built(cls, arguments, device="meta")
    values = {name: layer.value(name).detach() for name in twin._parameters if source_of(layer, name) is not None}
    values |= {name: value_in_use(layer, name).detach() for name in values.keys() & layer._unitary.keys()}
    values |= {} if kernel is None else {"weight": kernel.detach()}
    dtypes = [p.dtype for name, p in layer._parameters.items() if p is not None and name not in layer._unitary]
    if dtypes and not layer.is_complex:  # a half precision one, in which unitary weights are not kept
        values = {name: value.to(dtypes[0]) for name, value in values.items()}
    known = frozenset(vars(built(type(layer), _again(layer, kind), device="meta"))) | {"uses"}  # left by a forward
    scale = layer.scale if isinstance(layer, StiefelNd) else 1.0
    values = {name: value.contiguous() for name, value in values.items()}
    return Swap(layer, twin, values, known, scale, note=_certificate(layer, values))


def _certificate(layer: nn.Module, values: dict[str, Tensor]) -> str:
    """What rounding has left of an isometry: of a local convolution, as it is stored.

    It is true of images with sides in multiples of the stride; torch's layer takes others, and has larger singular
    values there. With zeros around the image it never was an isometry, and the largest singular value is bounded for
    all images.
    """
    if not isinstance(layer, OrthogonalConvNd) or not isinstance(layer.support, LocalSupport) or layer.is_complex:
        return ""
    kernel = values["weight"]
    if kernel.is_meta:
        return ""
    bounded, images = "sigma^2 - 1", ""
    if layer.support.is_periodic:
        bounded = "|sigma^2 - 1|"
        images = f", for sides in multiples of the stride {layer.stride}" if max(layer.stride) > 1 else ""
    return f"{bounded} <= {float(orthogonality_bound(kernel, layer.stride, groups=layer.groups)):.1e}{images}"


def _kind_of(layer: nn.Module) -> Kind:
    cls = parametrize.type_before_parametrizations(layer)
    if (kind := BY_PLAIN.get(cls)) is not None:
        return kind
    if isinstance(layer, WITHOUT_COUNTERPART):
        raise LeaveAlone("no unitary layer takes its place")
    base = next(c.__name__ for c in cls.__mro__ if c in BY_PLAIN)
    raise LeaveAlone(f"a subclass of {base}, which may do something else")


def _check_contents(layer: nn.Module, plain: nn.Module) -> None:
    """Leaves alone what is not torch's layer and no more."""
    if "forward" in vars(layer):
        raise LeaveAlone("its forward was replaced")
    for what, names in contents_of(layer).items():
        expected = contents_of(plain)[what]
        if names != expected:
            different = ", ".join(sorted(names ^ expected))
            raise LeaveAlone(f"its {what} are not those of torch's layer ({different})")


def _check_sources(layer: nn.Module, twin: nn.Module) -> None:
    """Leaves alone a layer of which a weight is not an ordinary parameter."""
    unitary = unitary_names(twin)
    for name in contents_of(layer)["parameters"]:
        source, is_computed = source_of(layer, name), name not in layer._parameters
        if source is None or (is_computed and name not in unitary):
            raise LeaveAlone(f"its {name} is computed by {_parametrisation(layer, name)}")
        if source.is_inference():
            raise LeaveAlone(f"its {name} was made in inference mode, and cannot be trained")
        if type(source) is not nn.Parameter:
            raise LeaveAlone(f"its {name} is no ordinary parameter, but of type {type(source).__name__}")


def _parametrisation(layer: nn.Module, name: str) -> str:
    return ", ".join(type(part).__name__.strip("_") for part in parametrizations_of(layer)[name].children())


def _is_pointwise(layer: Any) -> bool:
    """Whether a convolution is a matrix at each pixel: with orthonormal rows or columns it is an isometry itself."""
    taps = (*layer.kernel_size, *layer.stride)
    return all(n == 1 for n in taps) and (isinstance(layer.padding, str) or not any(layer.padding))


def _again(layer: Any, kind: Kind) -> dict[str, Any]:
    """Arguments for a layer of this package with the attributes of this one."""
    arguments = kind.arguments(layer)
    if not isinstance(layer, OrthogonalConvNd):
        return arguments
    return arguments | {"input_size": layer.input_size}


def _of_isometry(layer: OrthogonalConvNd, arguments: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """Arguments of torch's convolution that does the same, and its kernel."""
    kernel, support = layer.spatial_kernel(), layer.support
    sides, taps = tuple(range(2, kernel.ndim)), tuple(kernel.shape[2:])
    if isinstance(support, LocalSupport):
        before, after = support.padding()
    else:
        before = [(n - 1) // 2 for n in taps]
        after = [n - 1 - p for n, p in zip(taps, before, strict=True)]
        kernel = kernel.roll(before, sides)  # its first tap is the output's pixel
    if all(s == 1 for s in layer.stride):
        padding: Any = "same"
    elif any(s == 1 and b != a for s, b, a in zip(layer.stride, before, after, strict=True)):
        raise LeaveAlone("torch has no such padding of an even kernel, with a stride along another side")
    else:
        padding = tuple(before)
    return arguments | {"kernel_size": taps, "padding": padding, "padding_mode": layer.padding_mode}, kernel

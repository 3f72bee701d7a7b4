"""The arguments of a model in a form that a configuration file holds, and how they are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import timm.layers
from timm.layers import get_act_layer, get_norm_layer
from torch import nn

from ..init import INITS
from ..layers import activation, attention, conv, linear
from ..layers.base.inputs import as_sides
from ..projunn import UpdateRule

# Note [What a configuration holds]
# timm writes the arguments of a model into config.json when it saves it, and makes the model of them when it loads it.
# JSON knows no rules, classes and functions. So a model notes its arguments in a form that JSON holds and that its
# constructor takes: a rule as the options that are not the default, a class of layers by its name if it is one of ours,
# of torch.nn or of timm.layers, a start of ours by its name. Whatever else is no JSON is noted as it is, and timm then
# refuses to save it, in words. timm adds what it was told itself, by assignment, so the form is made there too.

HOMES = (
    activation,
    attention,
    conv,
    linear,
    nn,
    timm.layers,
)  # of classes known by their names, in this order
Layer = Callable[..., nn.Module]


def noted(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a configuration holds them; see Note [What a configuration holds].

    Args:
        arguments: by name; device, dtype and those that are None are left out, as timm leaves them out.
    """
    left_out = ("self", "__class__", "device", "dtype")
    return {name: _as_json(v) for name, v in arguments.items() if name not in left_out and v is not None}


def rule_of(update: UpdateRule | Mapping[str, Any] | str) -> UpdateRule:
    """The rule that is meant by itself, by a dict of its options, or by its variant.

    Raises:
        ValueError: for an option that rules do not have, or one out of range.
    """
    if isinstance(update, UpdateRule):
        return update
    options = {"variant": update} if isinstance(update, str) else update
    known = [field.name for field in fields(UpdateRule)]
    if not isinstance(options, Mapping) or not set(options) <= set(known):
        raise ValueError(
            f'expected update to be "T", "D", an UpdateRule or a dict of its options {tuple(known)}, got {update!r}'
        )
    return UpdateRule(**options)


def layer_of(option: str, given: str | Layer | None) -> Layer | None:
    """What makes a layer, given itself or by a name: that of a class, or timm's for a norm or an activation.

    Args:
        option: name of the argument.
        given: its value.

    Raises:
        ValueError: for an unknown name, or a layer in the place of its class.
    """
    if not given or (callable(given) and not isinstance(given, (str, nn.Module))):
        return given or None
    named = _class_named(given) or _known_to_timm(option, given) if isinstance(given, str) else None
    if named is None:
        raise ValueError(
            f"expected {option} to be a class or the name of one in unitary_layers, torch.nn or timm.layers, "
            f"got {given!r}"
        )
    return named


def sides_of(img_size: int | Sequence[int] | None) -> tuple[int, int]:
    """Height and width of the images of a model with full support.

    Raises:
        ValueError: for None, or what are not two positive integers or one for both.
    """
    if img_size is None:
        raise ValueError("expected img_size with full support, whose kernels are as large as the image")
    height, width = as_sides("img_size", img_size, 2)
    return height, width


def pooling_of(given: str | None, *others: str) -> str:
    """The name of a pooling, if it is one of timm's or of the others.

    Raises:
        ValueError: for an unknown one.
    """
    known = ("avg", "max", "avgmax", "catavgmax", *others, "")
    if not isinstance(given, str) or (given not in known and given.removeprefix("fast") not in known):
        raise ValueError(f"expected global_pool to be one of {known}, got {given!r}")
    return given


def _as_json(value: Any) -> Any:
    if isinstance(value, UpdateRule):
        default = asdict(UpdateRule())
        return {name: v for name, v in asdict(value).items() if v != default[name]}
    if isinstance(value, type) and value is _class_named(name := value.__name__):
        return name
    return next((name for name, filler in INITS.items() if filler is value), value)


def _class_named(name: str) -> type[nn.Module] | None:
    found = (getattr(home, name, None) for home in HOMES)
    return next((value for value in found if isinstance(value, type) and issubclass(value, nn.Module)), None)


def _known_to_timm(option: str, name: str) -> Layer | None:
    getters = {"norm_layer": get_norm_layer, "act_layer": get_act_layer}
    try:
        return getters[option](name)  # type: ignore[no-untyped-call]  # timm's have no annotations
    except KeyError:
        return None

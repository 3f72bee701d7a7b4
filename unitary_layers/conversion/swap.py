"""One layer becomes another class in its place: prepared first, then exchanged, so that an error changes nothing."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..layers import UnitaryModule
from ..training.owners import forget_owner, register_owner

# Note [A layer changes its class]
# A model may hold a layer in more places than its tree of modules: a list, a closure, the handle of a hook. So no new
# object takes a layer's place. The layer gets another class and other contents, as torch's own parametrisations do it,
# and keeps its parameters, hooks and whatever a user has hung on it. A parameter is written in place wherever the new
# one has its shape, so that tied layers stay tied and an optimiser goes on with what it has. All that can fail happens
# before the first layer is exchanged; an exchange only moves references and copies numbers. A new parameter is tied
# where all that it is made of was: a kernel that comes of two weights to another one that comes of both.

# What torch keeps in every module, besides its tensors: whether it trains, and its hooks.
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}

New = dict[tuple[object, ...], list[nn.Parameter]]  # parameters of another shape, by what they are made of


@dataclass(eq=False)
class Swap:
    """A layer and what it is to become.

    Attributes:
        layer: as it is.
        twin: a layer of the other class with the same arguments, of which the layer gets class and contents.
        values: what the twin's parameters are to be, where that is not what the layer's are: ``(*shape)`` each.
        known: names of the attributes that the layer's present class makes; others are the user's.
        scale: by what a stored weight is multiplied in the twin; others that hold it keep it as it is.
        moved: ``|W - W'| / |W|`` of its weights, or None.
        note: for the report.
    """

    layer: nn.Module
    twin: nn.Module
    values: dict[str, Tensor]
    known: frozenset[str] = field(default_factory=frozenset)
    scale: float = 1.0
    moved: float | None = None
    note: str = ""


def source_of(layer: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter by this name, or the one that torch's parametrisation computes it from."""
    lists = parametrizations_of(layer)
    return lists[name]._parameters.get("original") if name in lists else layer._parameters.get(name)


def parametrizations_of(layer: nn.Module) -> dict[str, nn.Module]:
    """What torch computes the layer's parameters with, by their names."""
    lists = layer._modules.get("parametrizations")
    return dict(lists.items()) if isinstance(lists, nn.ModuleDict) else {}


@torch.no_grad()
def exchange(swaps: dict[str, Swap]) -> None:
    """Carries out what was prepared, and forgets it; tied parameters stay tied."""
    new: New = {}
    for name in list(swaps):
        _exchange(swaps.pop(name), new)


def _exchange(swap: Swap, new: New) -> None:
    layer, twin = swap.layer, swap.twin
    device = next(layer.parameters()).device
    for name, present in list(twin._parameters.items()):
        if present is not None:
            setattr(twin, name, _parameter(source_of(layer, name), name, present, swap, new))
    for name, buffer in twin._buffers.items():
        if buffer is not None and buffer.is_meta:
            twin._buffers[name] = torch.zeros_like(buffer, device=device)
    twin._modules |= {name: child for name, child in layer._modules.items() if name in twin._modules}
    for child in twin.children():
        if child not in layer.children():
            child.train(layer.training)
    kept = {k: v for k, v in vars(layer).items() if k in _OF_EVERY_MODULE or k not in swap.known}
    contents = vars(twin) | kept
    forget_owner(layer)
    forget_owner(twin)
    layer.__class__ = type(twin)  # type: ignore[assignment]
    vars(layer).clear()
    vars(layer).update(contents)
    if isinstance(layer, UnitaryModule):
        register_owner(layer)
        for weight in layer.own_unitary_weights():
            weight.note()


def _parameter(source: nn.Parameter | None, name: str, present: Tensor, swap: Swap, new: New) -> nn.Parameter:
    """The layer's own parameter with its new value; or a new one, where there is none of the new shape."""
    value = swap.values.get(name)
    is_scaled = name == "weight" and swap.scale != 1
    fits = source is not None and (source.shape, source.is_complex()) == (present.shape, present.is_complex())
    if source is not None and fits and not is_scaled:
        if value is not None and not _copied(value, source):
            gradient, source.grad = source.grad, None  # which torch would leave in another dtype
            source.data = value  # as casts of nn.Module do; swap_tensors refuses what a weak reference is kept of
            source.grad = None if gradient is None else gradient.to(value.dtype)
        return source
    weight = source_of(swap.layer, "weight") if source is None else source
    value = present.detach() if value is None else value
    lost = [other for other in unitary_names(swap.layer) if other not in swap.twin._parameters]
    tied = new.setdefault((id(weight), name, swap.scale, *(id(source_of(swap.layer, other)) for other in lost)), [])
    for made in tied:
        if made.shape == value.shape and (source is None or _is_same(made, value)):
            return made
    tied.append(nn.Parameter(value, requires_grad=weight is None or weight.requires_grad))
    return tied[-1]


def _is_same(made: Tensor, value: Tensor) -> bool:
    """Whether two layers make the same numbers of what they share; those without memory count as the same."""
    fits = (made.dtype, made.device) == (value.dtype, value.device)
    return fits and (made.is_meta or torch.equal(made, value))


def _copied(value: Tensor, parameter: nn.Parameter) -> bool:
    """Whether a value was written into a parameter's memory, as is possible where dtype and layout are the same."""
    fits = parameter.dtype == value.dtype and parameter.is_contiguous() and not parameter.is_meta
    if fits and not torch.equal(parameter, value):
        parameter.copy_(value)
    return fits


def contents_of(layer: nn.Module) -> dict[str, set[str]]:
    """The names of the parameters, buffers and modules that a layer holds itself."""
    return {
        "parameters": {n for n, p in layer._parameters.items() if p is not None} | set(parametrizations_of(layer)),
        "buffers": {n for n, b in layer._buffers.items() if b is not None},
        "modules": set(layer._modules) - {"parametrizations"},
    }


def unitary_names(twin: nn.Module) -> list[str]:
    """The names of the unitary weights that a layer itself holds."""
    return [weight.name for weight in twin.own_unitary_weights()] if isinstance(twin, UnitaryModule) else []

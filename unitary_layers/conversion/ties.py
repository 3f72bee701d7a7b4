"""Layers that share a weight: they become unitary together, or not at all."""

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ..layers import UnitaryModule
from .swap import Swap, contents_of, source_of, unitary_names

# Note [Ties by memory]
# ``b.weight.data = a.weight.data`` and ``nn.Parameter(a.weight.data)`` make two parameters of one memory, so that what
# is written to one is in the other. So layers are tied that hold memory in common, whatever objects they hold it by:
# they become unitary together, if both hold the same view of it, or not at all. Pieces of one buffer that only lie
# side by side are not tied. Strided pieces that lie between one another are taken to be.


def memories(model: nn.Module) -> dict[int, int]:
    """A number for the memory of each parameter and buffer, by its identity; see Note [Ties by memory]."""
    tensors = [*model.parameters(), *model.buffers()]
    numbers = {id(x): id(x) for x in tensors}
    place, reached, number = "", 0, 0
    for device, begin, end, key in sorted((*span, id(x)) for x in tensors if (span := _span(x)) is not None):
        if device != place or begin >= reached:
            place, reached, number = device, end, key
        numbers[key], reached = number, max(reached, end)
    return numbers


def _span(x: Tensor) -> tuple[str, int, int] | None:
    """The device of a tensor, its first address and the one behind its last; None where it has none."""
    is_plain = type(x) in (nn.Parameter, Tensor) and x.layout == torch.strided and not x.is_meta
    if not is_plain or not x.numel() or not (begin := x.data_ptr()):
        return None
    last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return str(x.device), begin, begin + (last + 1) * x.element_size()


def _holders(model: nn.Module, memory: dict[int, int]) -> dict[int, list[tuple[nn.Module, str, Tensor]]]:
    """Which layers hold a memory, by which names and as which tensors."""
    holders: dict[int, list[tuple[nn.Module, str, Tensor]]] = defaultdict(list)
    for layer in model.modules():
        if isinstance(layer, ParametrizationList):  # what it holds is its layer's
            continue
        contents = contents_of(layer)
        held = {name: source_of(layer, name) for name in contents["parameters"]}
        for name, x in (held | {name: layer._buffers[name] for name in contents["buffers"]}).items():
            if x is not None:
                holders[memory[id(x)]].append((layer, name, x))
    return holders


def torn(model: nn.Module, swaps: dict[str, Swap], memory: dict[int, int]) -> dict[str, str]:
    """Those of the layers that share a weight with one that does not take it as the same kind of matrix, and why.

    Args:
        model: in which they are.
        swaps: by the names of the layers.
        memory: of :func:`memories`.
    """
    names = {id(layer): name for name, layer in model.named_modules()}
    holders = _holders(model, memory)
    reasons: dict[str, str] = {}
    while True:  # a layer that is left alone may take another along
        kept = {id(swap.layer): swap for name, swap in swaps.items() if name not in reasons}
        before = len(reasons)
        for name, swap in swaps.items():
            for local in unitary_names(swap.twin) if name not in reasons else ():
                source = source_of(swap.layer, local)
                for other, its, held in holders[memory[id(source)]] if source is not None else ():
                    is_own = (other, its) == (swap.layer, local)
                    if not is_own and not (_is_one(source, held) and _agree(swap, local, kept.get(id(other)), its)):
                        what = _what(local, source, held)
                        reasons[name] = f"it shares {what} with {names[id(other)]!r}, which stays as it is"
        if len(reasons) == before:
            return reasons


def _is_one(a: Tensor | None, b: Tensor) -> bool:
    """Whether two tensors are the same view of the same memory."""
    if a is b or a is None:
        return a is b
    return (a.data_ptr(), a.dtype, a.shape, a.stride()) == (b.data_ptr(), b.dtype, b.shape, b.stride())


def _what(name: str, source: Tensor | None, held: Tensor) -> str:
    return f"its {name}" if source is held else f"memory of its {name}"


def _agree(a: Swap, name: str, b: Swap | None, other: str) -> bool:
    """Whether two layers take a weight that they share as the same matrices."""
    if b is None or type(a.twin) is not type(b.twin) or other not in unitary_names(b.twin):
        return False
    assert isinstance(a.twin, UnitaryModule)
    assert isinstance(b.twin, UnitaryModule)
    return a.twin.unitary_weight(name).matrix.shape == b.twin.unitary_weight(other).matrix.shape


def rounded_otherwise(model: nn.Module, swaps: dict[str, Swap]) -> dict[str, str]:
    """Those of the quantised layers that share a weight with one that stays, or does not round it alike, and why.

    Args:
        model: in which they are.
        swaps: of layers that become torch's, by their names.
    """
    names = {id(layer): name for name, layer in model.named_modules()}
    reverted = {id(swap.layer) for swap in swaps.values()}
    holders = _holders(model, memory := memories(model))
    reasons = {}
    for name, swap in swaps.items():
        layer = swap.layer
        assert isinstance(layer, UnitaryModule)
        for local in layer._unitary if layer.quantiser is not None else ():
            source = source_of(layer, local)
            for other, _, held in holders[memory[id(source)]] if source is not None else ():
                if id(other) not in reverted or getattr(other, "quantiser", None) != layer.quantiser:
                    what = _what(local, source, held)
                    reasons[name] = f"it shares {what} with {names[id(other)]!r}, which does not round it alike"
    return reasons

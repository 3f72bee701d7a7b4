"""Layers that share a weight: they become unitary together, or not at all."""

from collections import defaultdict

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from ..layers import UnitaryModule
from .swap import Swap, contents_of, source_of, unitary_names


def torn(model: nn.Module, swaps: dict[str, Swap]) -> dict[str, str]:
    """Those of the layers that share a weight with one that does not take it as the same kind of matrix, and why.

    Args:
        model: in which they are.
        swaps: by the names of the layers.
    """
    names = {id(layer): name for name, layer in model.named_modules()}
    holders: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for layer in model.modules():
        if not isinstance(layer, ParametrizationList):  # what it holds is its layer's
            for local in contents_of(layer)["parameters"]:
                holders[id(source_of(layer, local))].append((layer, local))
    reasons: dict[str, str] = {}
    while True:  # a layer that is left alone may take another along
        kept = {id(swap.layer): swap for name, swap in swaps.items() if name not in reasons}
        before = len(reasons)
        for name, swap in swaps.items():
            for local in unitary_names(swap.twin) if name not in reasons else ():
                for other, its in holders[id(source)] if (source := source_of(swap.layer, local)) is not None else ():
                    if (other, its) != (swap.layer, local) and not _agree(swap, local, kept.get(id(other)), its):
                        reasons[name] = f"it shares its {local} with {names[id(other)]!r}, which stays as it is"
        if len(reasons) == before:
            return reasons


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
    holders: dict[int, list[nn.Module]] = defaultdict(list)
    for layer in model.modules():
        for parameter in layer._parameters.values():
            holders[id(parameter)].append(layer)
    reasons = {}
    for name, swap in swaps.items():
        layer = swap.layer
        assert isinstance(layer, UnitaryModule)
        for local in layer._unitary if layer.quantiser is not None else ():
            for other in holders[id(layer._parameters[local])]:
                if id(other) not in reverted or getattr(other, "quantiser", None) != layer.quantiser:
                    reasons[name] = f"it shares its {local} with {names[id(other)]!r}, which does not round it alike"
    return reasons

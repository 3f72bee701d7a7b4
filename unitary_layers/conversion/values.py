"""The weights that converted layers start with."""

import math

import torch
from torch import Tensor

from ..layers import UnitaryModule
from ..layers.conv.orthogonal import OrthogonalConvNd
from ..linalg import nearest_unitary, unitarity_error
from ..training.watch import rounding_tolerance
from ..training.weight import UnitaryWeight, as_complex
from .plan import LeaveAlone
from .swap import Swap, contents_of, source_of, unitary_names

# Note [What a parametrisation keeps]
# A weight that a parametrisation keeps orthonormal is taken over as it is, for nobody should have to train again. Its
# error is that of the parametrisation, which solves a system or forms an exponential and so is larger than that of
# rounding. One beyond the square root of eps is no such weight: a parametrisation keeps something else there.


@torch.no_grad()
def give_values(swap: Swap, name: str, known: dict[tuple[int, str], Tensor], memory: dict[int, int]) -> None:
    """Works out the weights of a layer, and by how much they differ from those that it has.

    Args:
        swap: from :func:`unitary_layers.conversion.plan.forth`; completed.
        name: of the layer, for errors.
        known: the values by memory, of tied layers that were here before.
        memory: of the parameters; see Note [Ties by memory].

    Raises:
        LeaveAlone: for a weight that a parametrisation computes and that is not orthonormal.
        ValueError: for a weight with NaN or infinity.
    """
    layer, twin = swap.layer, swap.twin
    assert isinstance(twin, UnitaryModule)
    pairs = []
    for weight in twin.own_unitary_weights():
        if (source := source_of(layer, weight.name)) is None:  # one that torch's layer has not
            swap.values[weight.name] = weight.parameter.detach()
            continue
        present = getattr(layer, weight.name).detach()
        if not present.is_meta and not present.isfinite().all():
            raise ValueError(f"expected finite weights, got NaN or infinity in {weight.name!r} of the layer {name!r}")
        key = (memory[id(source)], weight.name)
        if key not in known:
            is_computed = weight.name not in layer._parameters
            known[key] = _nearest(weight, present, is_computed) if weight.parameter.is_meta else weight.parameter
        swap.values[weight.name] = known[key].detach()
        pairs.append((present, _kernel(twin, known[key])))
    for local in contents_of(layer)["parameters"] - set(unitary_names(twin)):
        if (other := source_of(layer, local)) is not None and other.is_complex():
            swap.values[local] = torch.view_as_real(other.detach()).contiguous()
    swap.moved = _distance(pairs)


def _nearest(weight: UnitaryWeight, present: Tensor, is_computed: bool) -> Tensor:
    """The unitary weight nearest to one of torch's, as it is stored; itself where it is unitary."""
    stored = torch.view_as_real(present) if weight.is_complex else present
    stored = stored.to(weight.parameter.dtype).clone(memory_format=torch.contiguous_format)
    if stored.is_meta:
        return stored
    error = float(unitarity_error(matrix := weight.as_matrix(stored)).amax())
    if is_computed and error > torch.finfo(stored.dtype).eps ** 0.5:
        raise LeaveAlone(f"its {weight.name} is computed from other parameters, and is not orthonormal")
    if is_computed or error <= rounding_tolerance(weight):
        return stored
    return weight.as_stored(nearest_unitary(matrix))


def _kernel(twin: UnitaryModule, stored: Tensor) -> Tensor:
    """The weight of torch's layer that a stored one stands for."""
    if isinstance(twin, OrthogonalConvNd):
        return twin.spatial_kernel()
    return as_complex(stored, twin.is_complex)


def _distance(pairs: list[tuple[Tensor, Tensor]]) -> float | None:
    """``|W - W'| / |W|`` of all weights of a layer together."""
    if not pairs or any(before.is_meta for before, _ in pairs):
        return None
    squares = [(float((a - b).abs().square().sum()), float(b.abs().square().sum())) for b, a in pairs]
    moved, before = (sum(column) for column in zip(*squares, strict=True))
    return math.sqrt(moved / before) if before else math.inf

"""What a layer keeps beside a unitary weight, as buffers: their names, and the shapes that a rule gives them."""

from functools import lru_cache

import torch

from ...projunn.rule import UpdateRule
from ...training.memory import Memory

STATE = ("count", "previous", *Memory._fields)  # after the name of the weight
LATER: dict[str, object] = {
    "quantiser": None,
    "_lazy": frozenset(),
}  # attributes that pickles of older releases do not have
GONE = ("row_moments", "column_moments")  # what state dicts of older releases have beside these, and nothing needs


@lru_cache
def state_names(name: str) -> tuple[str, ...]:
    """Names of the buffers that a weight of this name has, or may have."""
    return tuple(f"{name}_{state}" for state in STATE)


def state_shapes(
    rule: UpdateRule, stored: torch.Size, matrices: torch.Size, *, is_dense: bool
) -> list[torch.Size | None]:
    """The shapes of the buffers of :data:`STATE` but the count; None for those that a rule does not need.

    Args:
        rule: with what suits the layer.
        stored: the shape of the parameter.
        matrices: ``(..., m, n)``, the shape of what it stands for.
        is_dense: whether it has a dense gradient, and so a momentum of its shape; see Note [A thin momentum].
    """
    *batch, m, n = matrices
    rank, pair = rule.rank_of(min(m, n)), () if stored.numel() == matrices.numel() else (2,)
    previous = torch.Size((*batch, m, rank, *pair)) if rule.sampler == "power" else None
    memory = Memory.shapes(stored, matrices, rank, is_thin=not is_dense)
    return [previous, *(memory if rule.momentum else [None] * len(memory))]

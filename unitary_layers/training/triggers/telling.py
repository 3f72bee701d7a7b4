"""Warnings about an optimiser and the unitary weights that it was given, or was not."""

import sys
import warnings
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from ..weight import UnitaryWeight, unitary_weights


def warn_of_strangers(optimizer: Optimizer, weights: Sequence[UnitaryWeight], advice: str) -> None:
    """Says that an optimiser was about to take unitary weights for ordinary ones; not of those that are held still."""
    if all(weight.rule.rate == 0 for weight in weights):
        return
    more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
    warnings.warn(
        f"{type(optimizer).__name__} was not attached, and was about to take the unitary weight {weights[0].name!r} "
        f"{tuple(weights[0].matrix.shape)}{more} for an ordinary parameter. {advice}",
        stacklevel=_level_of_caller(),
    )


def warn_of_a_part(optimizer: Optimizer, module: nn.Module, has_closure: bool) -> None:
    """Says that all of a module is about to move of which the optimiser was given a part, if it was given no more.

    An optimiser may well leave all unitary weights to :func:`attach`; one that leaves out ordinary parameters too was
    made for a part of the module.

    Args:
        optimizer: the host.
        module: that is attached to it.
        has_closure: whether the gradients are still to be made.
    """
    held = {p for group in optimizer.param_groups for p in group["params"]}
    moving = {
        name: p
        for name, p in module.named_parameters()
        if p not in held and p.requires_grad and (has_closure or p.grad is not None)
    }
    unitary = {weight.parameter: weight.name for weight in unitary_weights(module)}
    missing = [unitary[p] for p in moving.values() if p in unitary]
    ordinary = [name for name, p in moving.items() if p not in unitary]
    if missing and ordinary:
        warnings.warn(
            f"{type(optimizer).__name__} holds a part of the {type(module).__name__} alone: neither {ordinary[0]!r} "
            f"nor the unitary weight {missing[0]!r}, which moves all the same. Attach the part that is to learn, or "
            "freeze the rest by requires_grad_(False)",
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """How far up the script is: past the triggers, and torch, whose schedulers wrap steps."""
    frame, level = sys._getframe(1), 1
    passed = ("torch.", str(__package__))
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(passed):
        frame, level = frame.f_back, level + 1
    return level

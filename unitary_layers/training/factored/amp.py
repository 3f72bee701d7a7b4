"""Mixed precision: which GradScaler scales the losses of layers whose gradients are sampled in backward."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from ..weight import UnitaryOwner, UnitaryWeight, unitary_weights

# Note [Unscaled in backward]
# A GradScaler unscales what it finds in .grad, between backward and step. That serves factored gradients too, whose
# samples are linear in them. Layers that know their scaler take its scale out of the operator before it is sampled, so
# that the products of sampling are of the size that they have without it; the scaler then only looks for overflows.
# Until it has come by, all others find the gradient scaled, as they find those of dense layers: what they add to it, as
# a penalty does, is scaled too, and the sum is then unscaled as a whole.


def use_grad_scaler(module: nn.Module, scaler: GradScaler | None) -> None:
    """Tells all layers with unitary weights in a module tree which ``GradScaler`` scales their losses.

    Only layers with ``gradient="factored"`` look at it, in backward. ``attach(model, optimizer, scaler=scaler)`` calls
    this; call it yourself, before the first backward, where ``projunn_step`` or ``ProjUNN`` takes the step. In
    ``projunn_step`` an overflow of a factored gradient raises, or with ``UpdateRule(nonfinite="skip")`` leaves the
    weight out; the optimiser's step the scaler skips, as for any gradient.

    Args:
        module: any module tree; a copy of it knows no scaler.
        scaler: the scaler, or None for losses that are not scaled.

    Raises:
        TypeError: for what is not a module, or not a ``GradScaler``.
        ValueError: if the module has no unitary weight.
    """
    if scaler is not None and not isinstance(scaler, GradScaler):
        got, given = type(scaler).__name__, type(module).__name__
        if isinstance(module, GradScaler):
            got = f"use_grad_scaler({given}, {got}): swap the two"
        raise TypeError(f"expected a torch.amp.GradScaler or None, got {got}")
    if next(unitary_weights(module), None) is None:
        raise ValueError(f"expected a module with unitary weights, got a {type(module).__name__} without any")
    tell_owners(module, scaler)


def tell_owners(module: nn.Module, scaler: GradScaler | None) -> None:
    """:func:`use_grad_scaler` for whatever is in a module tree, and without a question."""
    for owner in module.modules():
        if isinstance(owner, UnitaryOwner):
            owner.grad_scaler = scaler  # type: ignore[assignment]  # torch promises tensors and modules alone


def unscale_factored(weights: Iterable[UnitaryWeight], scale: Tensor) -> None:
    """Takes a scale out of factored gradients, of which a fused optimiser was to take it out itself."""
    for weight in weights:
        if weight.collected is not None and (content := weight.collected.content) is not None:
            content.unscale_(1 / float(scale))
            content.is_unscaled = True  # should the step be refused and taken again


def has_overflowed(module: nn.Module, scaler: GradScaler) -> bool:
    """Whether a factored gradient is not finite; refuses those that the scaler cannot serve."""
    weights = list(unitary_weights(module))
    for weight in weights:
        # A rank alone cannot tell whether the sum over all overflows; see Note [Kept until the step].
        if weight.group is not None and weight.collected is not None:
            raise ValueError(
                f"expected a dense gradient of {weight.name!r}, which shares its gradients with other ranks, under a "
                'GradScaler; got gradient="factored"'
            )
        # A layer that came into the tree later was not told the scaler when backward sampled its gradient.
        is_sampled = weight.collected is not None and weight.collected.low_rank is not None
        if scaler.is_enabled() and is_sampled and weight.scaler is not scaler:
            raise RuntimeError(
                f"expected the layer of {weight.name!r} to know the GradScaler of attach, got a factored gradient that "
                "was never unscaled; call use_grad_scaler(model, scaler) when layers have been added or replaced"
            )
    return not all(map(_is_finite_if_factored, weights))


def _is_finite_if_factored(weight: UnitaryWeight) -> bool:
    factors = None if weight.collected is None else weight.collected.low_rank
    return factors is None or all(bool(torch.isfinite(factor).all()) for factor in factors)

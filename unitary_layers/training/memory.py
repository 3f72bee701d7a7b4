"""Where the momentum of the spectral direction lives."""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from ..projunn.rule import UpdateRule
from .weight import UnitaryWeight, as_matrix

# Note [Where the momentum lives]
# The momentum M of an n x n weight has n^2 numbers. With an optimiser at hand, under attach(model, optimizer) and in
# ProjUNN, it is "projunn_momentum" in the optimiser's state of the parameter, stored as the parameter is: state dicts
# of the optimiser, torch's distributed ones included, know it as they know the state of any parameter, and a saved
# model does not grow; see Note [A guest in the state dict]. Without one, under projunn_step and attach(model), there is
# none, unless the rule names a momentum: then it is a buffer of the layer, "<weight>_momentum", for every trigger. A
# factored gradient never becomes a matrix and has no momentum. Where gradients are shared, each rank keeps that of its
# own gradients: M is linear in them, so the mean of the ranks' M is the M of the mean gradient, and all subtract the
# same sample.

MOMENTUM = "projunn_momentum"


def momentum_of(weight: UnitaryWeight, rule: UpdateRule, state: MutableMapping[Tensor, Any] | None) -> Tensor | None:
    """The momentum of a weight as a matrix ``(..., n, n)``, zero at first; None where it has none.

    Args:
        weight: the weight.
        rule: by which it is to move.
        state: that of an optimiser, by parameter; or None.

    See Note [Where the momentum lives].
    """
    if not rule.is_spectral or rule.momentum == 0 or weight.collected is not None:
        return None
    stored = weight.momentum
    if stored is None:
        if state is None:
            return None
        own = state.setdefault(weight.parameter, {})
        if MOMENTUM not in own:
            own[MOMENTUM] = torch.zeros_like(weight.parameter, memory_format=torch.contiguous_format)
        stored = own[MOMENTUM]
    return as_matrix(stored.detach(), weight.is_complex)

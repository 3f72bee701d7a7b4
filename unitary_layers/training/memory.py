"""What the spectral direction remembers of the steps of a weight, and where."""

from collections.abc import MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..linalg import LowRank
from ..projunn.slope import STATE

# Note [Where the momentum lives]
# The momentum M of a weight is as large as the weight. With an optimiser at hand, under attach(model, optimizer) and in
# ProjUNN, it is "projunn_momentum" in the optimiser's state of the parameter, stored as the parameter is: state dicts
# of the optimiser, torch's distributed ones included, know it as they know the state of any parameter, and a saved
# model does not grow; see Note [A guest in the state dict]. Without one, under projunn_step and attach(model), there is
# none, unless the rule names a momentum: then it is a buffer of the layer, "<weight>_momentum", for every trigger. What
# the slope test needs is with it, and a rule without a momentum takes steps of the length that it says. A factored
# gradient never becomes a matrix and has no momentum. Where gradients are shared, each rank keeps that of its own
# gradients: M is linear in them, so the mean of the ranks' M is the M of the mean gradient, and all subtract the same
# sample.


Shapes = list[torch.Size]


class Memory(NamedTuple):
    """What is remembered of one weight, or of a batch of them; as it is stored, or as matrices.

    Attributes:
        momentum: M ``(..., m, n)``; see Note [The spectral direction].
        slope: state of the slope test ``(..., 4)``, real; see Note [The slope at the end of a step].
        course: the velocity at the end of the last step, its two factors side by side, ``(..., r, m + n)``, where r is
            2 k, or the larger side if that is less.
    """

    momentum: Tensor
    slope: Tensor
    course: Tensor

    @property
    def tangent(self) -> LowRank:
        """The course as a matrix of low rank."""
        left, right = self.course.mT.split(self.momentum.shape[-2:], dim=-2)
        return LowRank(left, right)

    @staticmethod
    def shapes(stored: torch.Size, matrices: torch.Size, rank: int) -> Shapes:
        """The shapes of what is stored for a parameter of one shape that stands for matrices ``(..., m, n)``."""
        *batch, m, n = matrices
        pair = () if stored.numel() == matrices.numel() else (2,)
        course = (*batch, min(max(m, n), 2 * rank), m + n, *pair)
        return [stored, torch.Size((*batch, STATE)), torch.Size(course)]


KEYS = tuple(f"projunn_{name}" for name in Memory._fields)


def remembered(own: MutableMapping[str, Any], parameter: Tensor, shapes: Shapes) -> Memory:
    """The memory of a parameter in an optimiser's state of it, as it is stored; zeros where another shape was.

    It follows the parameter to another dtype or device.
    """
    for key, shape in zip(KEYS, shapes, strict=True):
        fits = key in own and own[key].shape == shape
        own[key] = own[key].to(parameter) if fits else parameter.new_zeros(shape)
    return Memory(*(own[key].detach() for key in KEYS))

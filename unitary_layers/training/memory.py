"""What the spectral direction remembers of the steps of a weight, and where."""

from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..linalg import LowRank
from ..projunn.direction import lasting
from ..projunn.gradient import DenseGradient, GradientOperator
from ..projunn.rule import Key, UpdateRule
from ..projunn.sampling import LowRankGradient, lsi, projected, side_by_side
from ..projunn.slope import STATE

# Note [Where the momentum lives]
# The momentum M of a weight is as large as the weight. With an optimiser at hand, under attach(model, optimizer) and in
# ProjUNN, it is "projunn_momentum" in the optimiser's state of the parameter, stored as the parameter is: state dicts
# of the optimiser, torch's distributed ones included, know it as they know the state of any parameter, and a saved
# model does not grow; see Note [A guest in the state dict]. Without one, under projunn_step and attach(model), there is
# none, unless the rule names a momentum: then it is a buffer of the layer, "<weight>_momentum", for every trigger. What
# the slope test needs is with it, and a rule without a momentum takes steps of the length that it says.
# Where dense gradients are shared, each rank keeps that of its own: M is linear in them, so the mean of the ranks' M is
# the M of the mean gradient, and all subtract the same sample.

# Note [A thin momentum]
# The gradient of a factored weight never becomes a matrix, and so its momentum must not. Backward keeps a sample of G
# itself, not of its tangent part, of SAMPLED k columns; M is kept by KEPT k columns on either side; the step takes its
# sample of rank k of the tangent part of M + G, as of any operator, and what is left of M + G - (1 - mu) A V^H is cut
# to KEPT k columns by its singular values. No part of it is stored as tangent, since W turns. Mean training loss of the
# MLP of Note [The spectral direction], seeds 0 to 2: with matrices 0.385, 0.399, 0.377; thin 0.400, 0.415, 0.393; with
# samples of 3 k columns 0.395, 0.409, 0.388; without memory 0.428, 0.441, 0.421. With samples of 3 k and a memory of
# 6 k columns it is 0.390, with 2 k and 8 k 0.394 (seed 0). The cut is what costs. At n = 256, k = 16 a step takes
# 5.5 ms of the processor, 2.1 without memory and 3.8 with matrices. At n = 2048, k = 32, 512 rows a training step takes
# 1.07 times that of nn.Linear with AdamW, and 1.34 with matrices; without memory, in another run, 0.85 against 1.05.
# 4 k (m + n) numbers are kept, and for the course 2 k (m + n).
# The slope is that of the sample. Where gradients are shared, the sample is taken in the step and of their mean (see
# Note [Kept until the step]), so that it, and the momentum with it, are the same on all ranks.


Shapes = list[torch.Size]

SAMPLED, KEPT = 2, 4


class Memory(NamedTuple):
    """What is remembered of one weight, or of a batch of them; as it is stored, or as matrices.

    Attributes:
        momentum: M ``(..., m, n)``; see Note [The spectral direction]. Of a factored weight its two factors side by
            side, ``(..., c, m + n)``; see Note [A thin momentum].
        slope: state of the slope test ``(..., 4)``, real; see Note [The slope at the end of a step].
        course: the velocity at the end of the last step, its two factors side by side, ``(..., r, m + n)``, where r is
            2 k, or the larger side if that is less.
    """

    momentum: Tensor
    slope: Tensor
    course: Tensor

    @property
    def is_thin(self) -> bool:
        """Whether the momentum is kept by its factors; of complex ones it is to be asked without their pairs."""
        return self.momentum.size(-1) == self.course.size(-1)

    def added_to(self, gradient: GradientOperator, rule: UpdateRule) -> GradientOperator:
        """M, as it lasts, + G, which nobody else holds; by thin factors where M and G are."""
        n = min(gradient.shape[-2:])
        kept = lasting(rule.rank_of(n), n)
        if self.is_thin and isinstance(gradient, LowRankGradient):
            before = apart(self.momentum, gradient.shape).scale(kept)
            return LowRankGradient.of(side_by_side([before, gradient.low_rank]))
        return DenseGradient(torch.add(gradient.dense(), self.momentum, alpha=kept))

    def thin(self, total: LowRank) -> Tensor:
        """A momentum as a thin one is kept, cut to as many columns."""
        return together(projected(total, self.momentum.size(-2)))

    @staticmethod
    def shapes(stored: torch.Size, matrices: torch.Size, rank: int, *, is_thin: bool) -> Shapes:
        """The shapes of what is stored for a parameter of one shape that stands for matrices ``(..., m, n)``."""
        *batch, m, n = matrices
        pair = () if stored.numel() == matrices.numel() else (2,)
        course = (*batch, min(max(m, n), 2 * rank), m + n, *pair)
        thin = (*batch, min(m, n, KEPT * rank), m + n, *pair)
        return [torch.Size(thin) if is_thin else stored, torch.Size((*batch, STATE)), torch.Size(course)]


def together(matrix: LowRank) -> Tensor:
    """The factors of a matrix ``(..., m, n)`` side by side ``(..., r, m + n)``, as they are stored."""
    return torch.cat([factor.mT for factor in matrix], dim=-1)


def apart(stored: Tensor, shape: torch.Size) -> LowRank:
    """The inverse of :func:`together` for a matrix of this shape ``(..., m, n)``."""
    return LowRank(*stored.mT.split(shape[-2:], dim=-2))


def thin_sample(gradient: GradientOperator, rule: UpdateRule, keys: Sequence[Key]) -> LowRankGradient:
    """What a thin momentum sees of a gradient, by random numbers of its own; see Note [A thin momentum]."""
    side = min(gradient.shape[-2:])
    streams = rule.streams(keys, gradient.device, stream=2)
    return LowRankGradient.of(lsi(gradient, min(side, SAMPLED * rule.rank_of(side)), streams))


KEYS = tuple(f"projunn_{name}" for name in Memory._fields)


def remembered(own: MutableMapping[str, Any], parameter: Tensor, shapes: Shapes) -> Memory:
    """The memory of a parameter in an optimiser's state of it, as it is stored; zeros where another shape was.

    It follows the parameter to another dtype or device.
    """
    for key, shape in zip(KEYS, shapes, strict=True):
        fits = key in own and own[key].shape == shape
        own[key] = own[key].to(parameter) if fits else parameter.new_zeros(shape)
    return Memory(*(own[key].detach() for key in KEYS))

"""Steps of weights, and those of one shape and one rule as a batch that moves at once."""

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from ..linalg import LowRank
from ..projunn.gradient import DenseGradient, GradientOperator
from ..projunn.rule import UpdateRule
from ..projunn.sampling import LowRankGradient
from .memory import Memory, remembered, thin_sample
from .reduced import ReducedGradient
from .weight import UnitaryWeight, as_complex

# Note [Small weights move together]
# A step of a 64 x 64 weight is some fifty calls of operators with hardly any arithmetic in them, and a network has
# a hundred such weights. So weights of one shape, dtype, device and rule are stacked in front, and one call moves them
# all. A stack is a copy of gradients and weights: from LARGEST numbers in a weight on, the copy costs more than the
# calls, and a weight goes alone and in place. The random numbers of a weight depend on its own key all the same, so
# that it moves alike, but for rounding, in whatever company.

LARGEST = 2**16
STACKED = 2**22  # numbers in a stack: its 16 MiB in float32 are still cheap to allocate


@dataclass(frozen=True)
class Step:
    """What one weight is to do.

    Attributes:
        weight: the weight, and where its state is kept.
        direction: what it is to go against.
        rule: how it moves.
        state: buffers of an optimiser, and the values that they get if and when the step is taken.
        memory: what the spectral direction has kept of the steps before, as matrices; or None.
    """

    weight: UnitaryWeight
    direction: GradientOperator
    rule: UpdateRule
    state: Sequence[tuple[Tensor, Tensor]] = ()
    memory: Memory | None = None

    def finish(self) -> UnitaryWeight:
        """What is left to do once the step is written; returns the weight that it belongs to."""
        return self.weight


def step_of(
    weight: UnitaryWeight,
    gradient: GradientOperator,
    rule: UpdateRule,
    state: MutableMapping[Tensor, Any] | None = None,
) -> Step:
    """The step of a weight by a rule, with what the state of an optimiser, if there is one, remembers of it."""
    return Step(weight, gradient, rule, memory=_memory_of(weight, rule, state))


def _memory_of(weight: UnitaryWeight, rule: UpdateRule, state: MutableMapping[Tensor, Any] | None) -> Memory | None:
    """See Note [Where the momentum lives]."""
    if not rule.is_spectral or rule.momentum == 0:
        return None
    stored = weight.memory
    if stored is None:
        if state is None:
            return None
        own, rank = state.setdefault(weight.parameter, {}), rule.rank_of(min(weight.shape))
        shapes = Memory.shapes(weight.parameter.shape, weight.matrix.shape, rank, is_thin=weight.collected is not None)
        stored = remembered(own, weight.parameter, shapes)
    momentum, course = (as_complex(part, weight.is_complex) for part in (stored.momentum, stored.course))
    memory = Memory(momentum, stored.slope, course)
    return memory if memory.is_thin else memory._replace(momentum=weight.as_matrix(stored.momentum))


@dataclass(frozen=True)
class Batch:
    """Steps of weights of one shape by one rule; what several have is stacked in a new first dimension.

    Attributes:
        steps: one or more.
    """

    steps: tuple[Step, ...]

    @property
    def rule(self) -> UpdateRule:
        """How they all move."""
        return self.steps[0].rule

    @property
    def shape(self) -> torch.Size:
        """(m, n), of weights ``(..., m, n)``."""
        return self.steps[0].weight.shape

    @cached_property
    def keys(self) -> list[tuple[int, int]]:
        """What their random numbers depend on: their places, and the numbers of their steps so far."""
        return [step.weight.key for step in self.steps]

    @cached_property
    def matrices(self) -> list[Tensor]:
        """The unitary matrices, views of their parameters."""
        return [step.weight.matrix for step in self.steps]

    @cached_property
    def direction(self) -> GradientOperator:
        """What they are to go against; see also Note [A thin momentum]."""
        gradient = self._stacked_direction()
        if not self.rule.is_spectral or self.steps[0].weight.collected is None or isinstance(gradient, LowRankGradient):
            return gradient
        return thin_sample(gradient, self.rule, self.keys)

    def _stacked_direction(self) -> GradientOperator:
        first = self.steps[0].direction
        if len(self.steps) == 1:
            return first
        directions = [step.direction for step in self.steps]
        if isinstance(first, LowRankGradient):
            factors = [direction.low_rank for direction in cast(list[LowRankGradient], directions)]
            return LowRankGradient.of(LowRank(*map(self.stack, zip(*factors, strict=True))))
        if isinstance(first, ReducedGradient):
            inner = [direction.inner for direction in cast(list[ReducedGradient], directions)]
            return ReducedGradient(DenseGradient(self.stack(part.dense() for part in inner)), first.group)
        return DenseGradient(self.stack(direction.matrix for direction in cast(list[DenseGradient], directions)))

    @property
    def memories(self) -> list[Memory]:
        """What is remembered of each; none but for the spectral direction."""
        return [step.memory for step in self.steps if step.memory is not None]

    @cached_property
    def memory(self) -> Memory | None:
        """What is remembered of them."""
        return Memory(*map(self.stack, zip(*self.memories, strict=True))) if self.memories else None

    @cached_property
    def aim(self) -> GradientOperator:
        """The direction, with the momenta in it; then it is one that nobody else holds."""
        gradient = self.direction
        if self.memory is None:
            return gradient
        if isinstance(gradient, ReducedGradient):
            return ReducedGradient(self.memory.added_to(gradient.inner, self.rule), gradient.group)
        return self.memory.added_to(gradient, self.rule)

    @property
    def previous_factors(self) -> list[Tensor]:
        """The buffers of the left factors of the steps before; none but for the power sampler."""
        return [factor for step in self.steps if (factor := step.weight.previous_factor) is not None]

    @property
    def previous(self) -> Tensor | None:
        """The left factors of the steps before, for the power sampler."""
        return self.stack(self.previous_factors) if self.previous_factors else None

    def stack(self, tensors: Iterable[Tensor]) -> Tensor:
        """One of each weight; that of a weight alone as it is."""
        tensors = tuple(tensors)
        return torch.stack(tensors) if len(self.steps) > 1 else tensors[0]

    def unstack(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The inverse of :meth:`stack`."""
        return tensor.unbind() if len(self.steps) > 1 else (tensor,)


def batches(steps: Iterable[Step]) -> Iterator[Batch]:
    """The steps in batches, in the order of the first of each."""
    groups: dict[object, list[Step]] = {}
    for i, step in enumerate(steps):
        groups.setdefault(_kind(step) or i, []).append(step)
    for group in groups.values():
        size = max(1, STACKED // group[0].weight.parameter.numel())
        for start in range(0, len(group), size):
            yield Batch(tuple(group[start : start + size]))


def _kind(step: Step) -> tuple[object, ...] | None:
    """What steps of a batch have in common; None for one that goes alone."""
    parameter, direction = step.weight.parameter, step.direction
    # All ranks must form the same batches, whatever form their parts of a shared gradient have.
    group = direction.group if type(direction) is ReducedGradient else None
    if parameter.numel() > LARGEST or type(direction) not in (DenseGradient, LowRankGradient, ReducedGradient):
        return None
    rank = direction.low_rank.rank if isinstance(direction, LowRankGradient) else None
    kind = (parameter.shape, parameter.dtype, parameter.device, step.weight.matrix.shape, step.memory is not None)
    return step.rule, *kind, step.weight.collected is not None, rank, group

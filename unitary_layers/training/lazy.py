"""Steps of those matrices of a weight that a batch has used, while the others stay as they are."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..projunn.gradient import DenseGradient, GradientOperator
from .batch import Step
from .memory import Memory
from .reduced import ReducedGradient
from .weight import Seen, UnitaryWeight

# Note [Lazy weights]
# A vocabulary is a weight of many matrices, of which a batch uses a few. The gradient of the others is exactly zero,
# but a step with a momentum would move them all the same, along gradients of batches long gone, and their slope test
# would lengthen their steps, without a word having been seen. So a lazy weight steps by the matrices with a gradient
# that is not zero, taken out together with all that is remembered of them, and put back when they are written. The
# others keep every bit. This is what torch's SparseAdam does for the rows of an embedding. It also saves
# the small decompositions of matrices that would not move. Ranks that share gradients take those that any of them uses.
# Only a retraction that is due is of all matrices: a word that never occurs in just that step would drift for ever.


@dataclass(frozen=True)
class PartialStep(Step):
    """A step of some matrices of a weight; see Note [Lazy weights].

    Attributes:
        whole: the step of all, none of which is taken.
        places: of these matrices among all ``(count,)``.
    """

    whole: Step | None = None
    places: Tensor | None = None

    def finish(self) -> UnitaryWeight:
        """Puts back what was written; returns the whole weight."""
        assert self.whole is not None
        assert self.places is not None
        for own, written in zip(_tensors(self.whole), _tensors(self), strict=True):
            own.index_copy_(0, self.places, written)
        return self.whole.finish()


def lazy(step: Step, gradient: GradientOperator) -> Iterator[Step]:
    """The step as it is; of a lazy weight that of the matrices that have a gradient, or none."""
    if not step.weight.is_lazy:
        yield step
        return
    used = gradient.inner if isinstance(gradient, ReducedGradient) else gradient
    is_used = (used.dense() != 0).flatten(1).any(1)
    if isinstance(gradient, ReducedGradient):
        anywhere = is_used.to(torch.int32)
        dist.all_reduce(anywhere, dist.ReduceOp.MAX, gradient.group)
        is_used = anywhere > 0
    places = is_used.nonzero().flatten()
    if len(places):
        yield _part(step, places)


def _part(step: Step, places: Tensor) -> PartialStep:
    weight, direction = step.weight, step.direction
    reduced = direction if isinstance(direction, ReducedGradient) else None
    part: GradientOperator = DenseGradient((direction if reduced is None else reduced.inner).dense()[places])
    previous = weight.previous
    return PartialStep(
        replace(
            weight,
            parameter=nn.Parameter(weight.parameter.detach()[places]),
            previous=None if previous is None else previous[places],
            seen=Seen(),
        ),
        part if reduced is None else ReducedGradient(part, reduced.group),
        step.rule,
        [(buffer, buffer.index_copy(0, places, value[places])) for buffer, value in step.state],
        None if step.memory is None else Memory(*(kept[places] for kept in step.memory)),
        step,
        places,
    )


def _tensors(step: Step) -> list[Tensor]:
    """What a step writes, one entry a matrix."""
    weight = step.weight
    kept = (weight.previous, *(step.memory or ()))
    return [weight.parameter.detach(), *(tensor for tensor in kept if tensor is not None)]

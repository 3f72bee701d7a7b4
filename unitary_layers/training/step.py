"""The only writer of unitary weights: a step from their gradients, and a retraction to the manifold.

A step is a straight line, each stage a function of what the one before has returned: gather the gradients, check the
weights, group what moves together, sample, rotate, write.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..linalg import LowRank, nearest_unitary, unitarity_error
from ..linalg.thin import add_low_rank_
from ..projunn.gradient import GradientOperator
from ..projunn.sampling import LINEAR_SAMPLERS, LowRankGradient, recompressed, side_by_side
from ..projunn.slope import after_slope, factor_of
from .batch import Batch, Step, batches, step_of
from .lazy import lazy
from .memory import Memory, apart, together
from .parallel.shared import with_gradients
from .precision import without_autocast
from .reduced import ReducedGradient
from .watch import watch
from .weight import UnitaryWeight, unitary_weights


@torch.no_grad()
def projunn_step(module: nn.Module, *, lr_scale: float = 1.0) -> None:
    """Moves every unitary weight of a module tree that has a gradient, then sets its ``.grad`` to None.

    An optimiser over ``module.parameters()`` that steps next skips these weights: no weight decay, no momentum, no
    second step. Without any gradient nothing happens; frozen weights stay as they are.

    Args:
        module: any module, for example an ``nn.Sequential`` with unitary layers in it.
        lr_scale: factor of every rule's learning rate, for a schedule.

    Raises:
        TypeError, ValueError: for what is not a module, or not a finite factor of at least 0.
        RuntimeError: if a gradient has a NaN or an infinity (unless its rule says "skip") or is sparse, if its step
            overflows, or if a weight is not unitary (where its rule says "raise"), naming the weight; then no weight
            was changed and all gradients are there.
    """
    if not isinstance(lr_scale, (int, float)) or not 0 <= lr_scale <= sys.float_info.max:
        raise ValueError(f"expected lr_scale to be a finite number of at least 0, got {lr_scale!r}")
    step_from_gradients(
        unitary_weights(module),
        lambda weight, gradient: step_of(weight, gradient, weight.rule.with_lr(weight.rule.rate * lr_scale)),
    )


def step_from_gradients(
    weights: Iterable[UnitaryWeight], to_take: Callable[[UnitaryWeight, GradientOperator], Step]
) -> None:
    """Takes the step ``to_take(weight, gradient)`` of each weight that has a gradient, then drops the gradients.

    Whatever can fail comes before the first write: an error leaves weights, gradients and states alone.
    """
    with ExitStack() as around:
        around.enter_context(torch.no_grad())
        gathered = with_gradients(weights)
        for device in {weight.parameter.device.type for weight, _ in gathered}:
            around.enter_context(without_autocast(device))
        watch(weight for weight, _ in gathered)
        grouped = batches(s for pair in gathered for s in lazy(to_take(*pair), pair[1]))
        sampled = [found for batch in grouped if (found := sample(batch)) is not None]
        for move in [rotate(*found) for found in sampled]:
            write(move)
        for weight, _ in gathered:
            weight.drop_gradient()


class Move(NamedTuple):
    """What a batch of weights is to become.

    Attributes:
        batch: the weights.
        sample: what stood for their gradients.
        change: what is to be added to them, ``(..., m, n)``.
        memory: what is then to be remembered, if anything is; in a momentum that is a matrix with what was used.
        used: the part of such a momentum that the change follows, or None.
    """

    batch: Batch
    sample: LowRank
    change: LowRank
    memory: Memory | None = None
    used: LowRank | None = None


# Note [A sample tells whether a gradient is finite]
# A NaN or an infinity of G survives the product with a Gaussian matrix and the products that follow, so that looking at
# the thin factors is enough and G is read once less. Only where a decomposition of more than that refuses it (the
# samplers "column" and "svd") is G itself looked at, before it is sampled.


def sample(batch: Batch) -> tuple[Batch, LowRank] | None:
    """A batch and its sample, without the weights whose gradient is not finite and to be skipped; None if that are all.

    Raises:
        RuntimeError: for a gradient that is not finite and not to be skipped.
    """
    is_refused = _is_sampled(batch) or batch.rule.sampler not in LINEAR_SAMPLERS
    taken = None if is_refused else _sample(batch)
    usable = _usable(batch, taken)
    if usable is None:
        return None
    return usable, taken if taken is not None and usable is batch else _sample(usable)


def rotate(batch: Batch, sample: LowRank) -> Move:
    """The change of the weights of a batch for a sample of their gradients."""
    weight, rule, memory = batch.stack(batch.matrices), batch.rule, batch.memory
    with _naming(batch):
        if memory is None:
            return Move(batch, sample, rule.change(weight, sample))
        slope = memory.slope.double()
        if rule.rate > 0:  # a step that stays where it is neither overshoots nor falls short
            slope = after_slope(slope, batch.direction.along(apart(memory.course, weight.shape)).double())
        change, course, used = rule.turn(weight, sample, factor_of(slope))
        aim = batch.aim.inner if isinstance(batch.aim, ReducedGradient) else batch.aim
        if isinstance(aim, LowRankGradient):
            momentum = memory.thin(side_by_side([aim.low_rank, rule.forgotten(used)]))
            return Move(batch, sample, change, Memory(momentum, slope, together(course)))
        return Move(batch, sample, change, Memory(aim.dense(), slope, together(course)), used)


def write(move: Move) -> None:
    """Writes a change, the states that go with it, and the retraction where one is due."""
    batch = move.batch
    counts = [count for _, count in batch.keys]  # before they are written
    if len(batch.steps) == 1:
        add_low_rank_(batch.matrices[0], move.change)
    else:
        torch._foreach_add_(batch.matrices, batch.unstack(move.change.matrix()))
    _write_states(batch, move.sample)
    if move.memory is not None:
        if move.used is not None:
            add_low_rank_(move.memory.momentum, batch.rule.forgotten(move.used))
        for buffers, values in zip(zip(*batch.memories, strict=True), move.memory, strict=True):
            _copy_(buffers, batch.unstack(values))
    period = batch.rule.retract_period(max(batch.shape))
    for step, count in zip(batch.steps, counts, strict=True):
        weight = step.finish()
        if period and (count + 1) % period == 0:
            weight.matrix.copy_(nearest_unitary(weight.matrix))
        weight.note()


def _write_states(batch: Batch, sample: LowRank) -> None:
    torch._foreach_add_([step.weight.count for step in batch.steps], 1)
    if batch.previous_factors:
        _copy_(batch.previous_factors, batch.unstack(sample.left))
    for step in batch.steps:
        for buffer, value in step.state:
            buffer.copy_(value)


@contextmanager
def _naming(batch: Batch) -> Iterator[None]:
    """Tells which weights could not be stepped where numbers overflow, or a decomposition does not converge."""
    try:
        yield
    except (ValueError, torch.linalg.LinAlgError) as error:
        names = ", ".join(repr(step.weight.name) for step in batch.steps)
        raise RuntimeError(
            f"no step of the unitary weights {names} at lr={batch.rule.rate:g}: {error}; no unitary weight was changed"
        ) from error


def _sample(batch: Batch) -> LowRank:
    with _naming(batch):
        if isinstance(batch.direction, LowRankGradient) and _is_sampled(batch):
            rank = batch.rule.rank_of(min(batch.shape))
            return recompressed(batch.direction.low_rank, rank)
        weight = batch.stack(batch.matrices)
        return batch.rule.sample(batch.aim, batch.keys, weight, batch.previous)


def _is_sampled(batch: Batch) -> bool:
    """Whether backward has taken the sample, in the rule's direction."""
    return isinstance(batch.direction, LowRankGradient) and not batch.rule.is_spectral


def _usable(batch: Batch, seen: LowRank | None) -> Batch | None:
    """The batch without those weights whose gradient is not finite and is to be skipped.

    It is looked at through a sample, or itself if there is none.
    """
    whole = batch.direction if seen is None else LowRankGradient.of(seen)
    if whole.is_finite():
        return batch
    if seen is None:
        parts = [step.direction for step in batch.steps]
    else:
        parts = [LowRankGradient.of(LowRank(*pair)) for pair in zip(*map(batch.unstack, seen), strict=True)]
    pairs = zip(batch.steps, parts, strict=True)
    usable = tuple(step for step, part in pairs if _is_usable(step.weight, part.is_finite()))
    return Batch(usable) if usable else None


def _is_usable(weight: UnitaryWeight, finite: bool) -> bool:
    """Whether to go on with a gradient; False if it is not finite and is to be skipped."""
    if finite:
        return True
    if weight.rule.nonfinite == "skip":
        return False
    raise RuntimeError(
        f"expected a finite gradient of the unitary weight {weight.name!r} {tuple(weight.matrix.shape)}, got NaN or "
        "infinity in it or in its products; no unitary weight was changed "
        '(UpdateRule(nonfinite="skip") leaves such a weight out instead)'
    )


def _copy_(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def drop_gradients(module: nn.Module) -> None:
    """Forgets the gradients of all unitary weights of a module tree.

    Each step does so, and any ``zero_grad()`` that has the weights. It is needed where a backward is not followed by
    a step, and other gradients are to stay.
    """
    for weight in unitary_weights(module):
        weight.drop_gradient()


@torch.no_grad()
def retract_(module: nn.Module) -> None:
    """Replaces every unitary weight of a module tree by the nearest unitary one, in place, frozen ones included.

    Raises:
        ValueError: if a weight has a NaN or an infinity, naming it; then no weight was changed.
    """
    retracted = []
    for weight in unitary_weights(module):
        if not torch.isfinite(weight.matrix).all():
            raise ValueError(f"expected a finite unitary weight {weight.name!r}, got NaN or infinity")
        retracted.append((weight, nearest_unitary(weight.matrix)))
    for weight, nearest in retracted:
        weight.matrix.copy_(nearest)
        weight.note()


@torch.no_grad()
def unitarity_error_of(module: nn.Module) -> Tensor:
    """The largest ``|W^H W - I|_F`` among the unitary weights of a module tree, a tensor ``()``; 0 if it has none."""
    errors = [unitarity_error(weight.matrix).amax() for weight in unitary_weights(module)]
    return torch.stack([e.double() for e in errors]).amax() if errors else torch.zeros(())

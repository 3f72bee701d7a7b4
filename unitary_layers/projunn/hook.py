"""The only writer of unitary weights: a step from their gradients, and a retraction to the manifold."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..linalg import LowRank, nearest_unitary, unitarity_error
from .gradient import GradientOperator
from .rule import Sample, UpdateRule
from .sampling import LINEAR_SAMPLERS, recompressed
from .weight import UnitaryWeight, unitary_weights


@dataclass(frozen=True)
class Step:
    """A weight, the direction it is to go against (a low-rank one has been sampled already), and the rule for it."""

    weight: UnitaryWeight
    direction: GradientOperator | LowRank
    rule: UpdateRule


@torch.no_grad()
def projunn_step(module: nn.Module, *, lr_scale: float = 1.0) -> None:
    """Moves every unitary weight of a module tree that has a gradient, then sets its ``.grad`` to None.

    An optimiser over ``module.parameters()`` that steps next skips these weights: no weight decay, no momentum, no
    second step. Without any gradient nothing happens; frozen weights stay as they are.

    Args:
        module: any module, for example an ``nn.Sequential`` with unitary layers in it.
        lr_scale: factor of every rule's learning rate, for a schedule.

    Raises:
        RuntimeError: if a gradient has a NaN or an infinity (unless its rule says "skip"), naming the weight; then no
            weight was changed and all gradients are still there.
    """
    step_from_gradients(unitary_weights(module), lambda weight: weight.rule.with_lr(weight.rule.lr * lr_scale))


Prepare = Callable[[UnitaryWeight, GradientOperator | LowRank], GradientOperator | LowRank]


def step_from_gradients(
    weights: Iterable[UnitaryWeight], rule: Callable[[UnitaryWeight], UpdateRule], prepare: Prepare | None = None
) -> None:
    """Moves those of the weights that have a gradient by ``rule(weight)``, then drops the gradients.

    ``prepare`` turns a gradient into the direction to go against, after all gradients have been found to be finite.
    """
    with torch.no_grad():
        pairs = [(weight, gradient) for weight in weights if (gradient := weight.gradient) is not None]
        if prepare is None:
            steps = [Step(weight, gradient, rule(weight)) for weight, gradient in pairs]
        else:
            finite = [(weight, gradient) for weight, gradient in pairs if _is_usable(weight, _is_finite(gradient))]
            steps = [Step(weight, prepare(weight, gradient), rule(weight)) for weight, gradient in finite]
        take(steps)
        for weight, _ in pairs:
            weight.drop_gradient()


# Note [A sample tells whether a gradient is finite]
# A NaN or an infinity of G survives the product with a Gaussian matrix and the products that follow, so that looking at
# the thin factors is enough and G is read once less. Only where a decomposition of more than that refuses it (the
# samplers "column" and "svd"), or where something changes its state by G first, is G itself looked at.


def take(steps: list[Step]) -> None:
    """Takes steps. All changes are computed, thin, before the first is written: an error leaves all weights alone."""
    pairs = []
    for step in steps:
        before = isinstance(step.direction, LowRank) or step.rule.sampler not in LINEAR_SAMPLERS
        if before and not _is_usable(step.weight, _is_finite(step.direction)):
            continue
        sample = _sample(step)
        if before or _is_usable(step.weight, _is_finite(sample.low_rank)):
            pairs.append((step, sample))
    changes = [step.rule.change(step.weight.matrix, sample.low_rank) for step, sample in pairs]
    for (step, sample), change in zip(pairs, changes, strict=True):
        _write(step, change, sample)


def _sample(step: Step) -> Sample:
    weight, rule = step.weight, step.rule
    if isinstance(step.direction, LowRank):
        return Sample(recompressed(step.direction, rule.rank), weight.collected.probes)
    return rule.sample(step.direction, weight.key, weight.previous_factor, weight.moments)


def _is_finite(gradient: GradientOperator | LowRank) -> bool:
    if isinstance(gradient, LowRank):
        return all(torch.isfinite(factor).all() for factor in gradient)
    return gradient.is_finite()


def _is_usable(weight: UnitaryWeight, finite: bool) -> bool:
    """Whether to go on with a gradient; False if it is not finite and is to be skipped."""
    if finite:
        return True
    if weight.rule.nonfinite == "skip":
        return False
    raise RuntimeError(
        f"expected a finite gradient of the unitary weight {weight.name!r} {tuple(weight.matrix.shape)}, got NaN or "
        'infinity; no unitary weight was changed (UpdateRule(nonfinite="skip") leaves such a weight out instead)'
    )


def _write(step: Step, change: LowRank, sample: Sample) -> None:
    weight = step.weight
    add_low_rank_(weight.matrix, change)
    weight.count.add_(1)
    if weight.previous is not None:
        weight.previous_factor.copy_(sample.low_rank.left)
    if sample.probes is not None:
        for buffer, new in zip(weight.moments, step.rule.averaged(weight.moments, sample.probes), strict=True):
            buffer.copy_(new)
    period = step.rule.retract_period(weight.matrix.size(-1))
    if period and int(weight.count) % period == 0:
        weight.matrix.copy_(nearest_unitary(weight.matrix))


def add_low_rank_(matrix: Tensor, change: LowRank) -> None:
    """Adds ``left @ right^H`` to a contiguous ``(..., n, n)`` in place, without a temporary of its size."""
    if matrix.ndim == 2:
        matrix.addmm_(change.left, change.right.mH)
    else:
        left, right = (factor.flatten(end_dim=-3) for factor in change)
        matrix.view(-1, *matrix.shape[-2:]).baddbmm_(left, right.mH)


def drop_gradients(module: nn.Module) -> None:
    """Forgets the gradients of all unitary weights of a module tree.

    ``optimizer.zero_grad()`` reaches ``.grad`` but not a factored gradient; each step drops both, and so do
    ``zero_grad()`` of the layers and models here and of ``ProjUNN``. It is needed where a backward is not followed by
    a step.
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
        retracted.append((weight.matrix, nearest_unitary(weight.matrix)))
    for matrix, nearest in retracted:
        matrix.copy_(nearest)


@torch.no_grad()
def unitarity_error_of(module: nn.Module) -> Tensor:
    """The largest ``|W^H W - I|_F`` among the unitary weights of a module tree, a tensor ``()``; 0 if it has none."""
    errors = [unitarity_error(weight.matrix).amax() for weight in unitary_weights(module)]
    return torch.stack([e.double() for e in errors]).amax() if errors else torch.zeros(())

"""A communication hook of DistributedDataParallel: of a dense unitary gradient, two thin products cross the wire.

Its form is that of torch's hook for T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: practical low-rank gradient
compression for distributed optimization", NeurIPS 2019, arXiv 1905.13727; here nothing is lost that the step uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...projunn.gradient import DenseGradient
from ...projunn.sampling import LINEAR_SAMPLERS
from ..batch import Step, batches
from ..reduced import ReducedGradient
from ..weight import UnitaryWeight, unitary_weights
from .shared import check_whole

# Note [Sampled in the bucket]
# The hook leaves the sample A V^H of the mean gradient in the .grad of every rank, where clipping, a GradScaler or an
# optimiser see the same on all of them. The step samples it again, with the same random numbers R, or the same left
# factor of the step before: from G^H R = V T (V orthonormal) follows (A V^H)^H R = V (G V)^H R = V V^H V T = V T, so
# that it finds the same V, the same A, and moves the weight as the whole gradient would, but for rounding. Not so in
# the spectral direction, whose momentum is to keep what was not sampled, nor for samplers that do not go by thin
# products: such gradients are averaged whole.


@dataclass(frozen=True)
class ThinProducts:
    """The state of :func:`thin_products_hook`.

    Attributes:
        module: the module tree that ``DistributedDataParallel`` wraps, not the wrapper.
        group: the ranks that the wrapper has; all by default.
    """

    module: nn.Module
    group: dist.ProcessGroup | None = None


def thin_products_hook(state: ThinProducts, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Averages a bucket of gradients over the ranks, dense gradients of unitary weights as their samplers see them.

    ``ddp.register_comm_hook(ThinProducts(ddp.module), thin_products_hook)`` has ``ddp`` exchange 2 k n numbers for an
    n x n unitary weight of rank k. Each rank's ``.grad`` is then the same matrix of rank k, whose step is that of the
    mean gradient; see Note [Sampled in the bucket]. All else of DistributedDataParallel is as ever: ``no_sync``, unused
    parameters, ``Join``. It is for rules with ``direction="gradient"``: in the spectral direction whole gradients are
    averaged, and :func:`share_gradients` is what exchanges thin products, as for factored ones. The "rmsprop" of
    ``ProjUNN`` would be made of this matrix and be another one than that of the whole gradient: leave the hook out
    with it.

    Raises:
        ValueError: for a weight that is sharded.
    """
    group = dist.group.WORLD if state.group is None else state.group
    assert group is not None  # as long as there is a wrapper that calls its hook
    gradients = {id(p): gradient for p, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True)}
    check_whole(weights := [weight for weight in unitary_weights(state.module) if id(weight.parameter) in gradients])
    ours = [(weight, gradients.pop(id(weight.parameter))) for weight in weights if _is_sampled(weight)]
    if not ours:
        return _mean(bucket.buffer(), group).then(lambda arrived: arrived.value()[0])
    rest = list(gradients.values())
    # They travel while the samples are taken. What waits for them runs on some thread at some time, and so must not
    # communicate itself: ranks would do so in different orders.
    travelling = _mean(torch.cat([bucket.buffer()[:0], *(g.flatten() for g in rest)]), group)
    _sample(ours, group)

    def put_back(arrived: torch.futures.Future[list[Tensor]]) -> Tensor:
        for gradient, mean in zip(rest, arrived.value()[0].split([g.numel() for g in rest]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return bucket.buffer()

    return travelling.then(put_back)


def _mean(x: Tensor, group: dist.ProcessGroup) -> torch.futures.Future[list[Tensor]]:
    """Of x over the ranks, in place."""
    return dist.all_reduce(x.div_(group.size()), group=group, async_op=True).get_future()


def _is_sampled(weight: UnitaryWeight) -> bool:
    """Whether a sample stands for the gradient; see Note [Sampled in the bucket]."""
    rule = weight.rule
    return weight.collected is None and rule.sampler in LINEAR_SAMPLERS and not rule.is_spectral


def _sample(pairs: Sequence[tuple[UnitaryWeight, Tensor]], group: dist.ProcessGroup) -> None:
    """Puts in the place of each gradient, stored as its weight is, the sample of its mean over the ranks."""
    steps, places = [], {}
    for weight, stored in pairs:
        # A bucket may begin at an odd number, where no view is complex.
        matrix = weight.as_matrix(stored.clone() if weight.is_complex else stored)
        steps.append(Step(weight, ReducedGradient(DenseGradient(matrix), group), weight.rule))
        places[weight.name] = stored
    for batch in batches(steps):
        assert isinstance(batch.direction, ReducedGradient)
        mean = batch.rule.sample(batch.direction, batch.keys, batch.stack(batch.matrices), batch.previous).matrix()
        for step, matrix in zip(batch.steps, batch.unstack(mean), strict=True):
            places[step.weight.name].copy_(step.weight.as_stored(matrix))

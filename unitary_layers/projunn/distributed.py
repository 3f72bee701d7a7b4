"""Data-parallel training of unitary weights in O(k n) communication: the thin products of a gradient are averaged."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .gradient import DenseGradient, GradientOperator
from .weight import UnitaryOwner, UnitaryWeight, unitary_weights

# Note [Thin products over many machines]
# A sampler sees a gradient through G v and G^H u alone, which are linear in G. So the mean of these products over the
# ranks is exactly the product of the mean gradient, and 2 k n numbers cross the wire instead of n^2 (with probes of the
# moments 8 n more). All ranks draw the same random numbers by their keys and get the same sums, bit for bit, so that
# their weights stay equal without ever being sent. DistributedDataParallel is told to leave these weights alone.


@dataclass(frozen=True)
class ReducedGradient(GradientOperator):
    """The mean of a gradient over the ranks of a group; see Note [Thin products over many machines].

    Attributes:
        inner: the part of this rank, ``(..., m, n)``.
        group: the ranks; all of them ask for the same products in the same order.
    """

    inner: GradientOperator
    group: dist.ProcessGroup

    @property
    def shape(self) -> torch.Size:
        return self.inner.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def matmul(self, v: Tensor) -> Tensor:
        return self._mean(self.inner.matmul(v).mT).mT

    def rmatmul(self, u: Tensor) -> Tensor:
        return self._mean(self.inner.rmatmul(u).mT).mT

    def dense(self) -> Tensor:
        return self._mean(self.inner.dense().clone())

    def is_finite(self) -> bool:
        return DenseGradient(self.dense()).is_finite()

    def _mean(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        dist.all_reduce(x, group=self.group)
        return x / self.group.size()


def share_gradients(module: nn.Module, group: dist.ProcessGroup | None = None) -> list[str]:
    """Makes the ranks of a group train the unitary weights of a module tree together.

    Call it on every rank, before wrapping the module in ``DistributedDataParallel``, which then moves the gradients of
    the other parameters alone. The weights start as those of the group's first rank. Nothing else changes:
    ``projunn_step``, ``attach(model, optimizer)`` and ``ProjUNN`` take the step of the mean gradient on every rank.
    Gradients accumulate on each rank by itself (``no_sync`` has nothing to do for them) and are averaged at the step;
    those of ``gradient="factored"`` are averaged inside each backward, in which every rank must take part and use the
    same weights. Optimisers with an elementwise direction ("rmsprop", "momentum"), and the samplers "column" and
    "svd", need the gradient as a matrix: then all of it is averaged, as DistributedDataParallel would.

    Args:
        module: any module tree; a copy of it shares nothing.
        group: the ranks; all by default. A group of one process trains by itself.

    Returns:
        Names of the unitary parameters.

    Raises:
        RuntimeError: if ``torch.distributed`` is not initialised.
        ValueError: for a module without unitary weights, or one that is wrapped already.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("expected torch.distributed to be initialised (init_process_group), but it is not")
    if any(isinstance(m, DistributedDataParallel) for m in module.modules()):
        raise ValueError("expected share_gradients(model) before DistributedDataParallel(model), got a wrapped module")
    weights = list(unitary_weights(module))
    if not weights:
        raise ValueError(f"expected a module with unitary weights, got a {type(module).__name__} without any")
    group = dist.group.WORLD if group is None else group
    for owner in module.modules():
        if isinstance(owner, UnitaryOwner):
            owner.process_group = group
    names = []
    for weight in unitary_weights(module):
        state = [weight.count, weight.previous, *(weight.moments or ())]
        for tensor in (weight.parameter.detach(), *(t for t in state if t is not None)):
            dist.broadcast(tensor, dist.get_global_rank(group, 0), group)
        weight.seen.note(weight.parameter)
        names.append(weight.name)
    _ignore(module, names)
    return names


def _ignore(module: nn.Module, names: Iterable[str]) -> None:
    """Keeps DistributedDataParallel from averaging these parameters, and from sending their buffers."""
    prefixes = tuple(f"{name}_" for name in names)
    buffers = [name for name, _ in module.named_buffers() if name.startswith(prefixes)]
    known = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, {*known, *names, *buffers})


def with_gradients(weights: Iterable[UnitaryWeight]) -> list[tuple[UnitaryWeight, GradientOperator]]:
    """The weights that have a gradient, and the gradients.

    A weight that other ranks of its group have used and this one has not gets a gradient of zeros, so that no rank
    waits for another.
    """
    weights = [weight for weight in weights if weight.parameter.requires_grad]
    gradients = [weight.gradient for weight in weights]
    for group in {weight.group for weight in weights if weight.group is not None}:
        members = [i for i, weight in enumerate(weights) if weight.group == group and weight.collected is None]
        if not members:
            continue
        used = torch.tensor([int(gradients[i] is not None) for i in members], device=weights[members[0]].count.device)
        dist.all_reduce(used, dist.ReduceOp.MAX, group)
        for i, is_used in zip(members, used.tolist(), strict=True):
            if is_used and gradients[i] is None:
                gradients[i] = DenseGradient(torch.zeros_like(weights[i].matrix))
    return [
        (weight, reduced(weight, gradient))
        for weight, gradient in zip(weights, gradients, strict=True)
        if gradient is not None
    ]


def reduced(weight: UnitaryWeight, gradient: GradientOperator) -> GradientOperator:
    """The mean of a gradient over the weight's group, where it has one; low-rank ones are means already."""
    if weight.group is None or not isinstance(gradient, GradientOperator):
        return gradient
    return ReducedGradient(gradient, weight.group)


def check_alone(weight: UnitaryWeight) -> None:
    """Refuses to sample a gradient in backward where there are other ranks that it may have to be averaged with.

    Raises:
        RuntimeError: in a distributed run, for a weight that shares its gradients with nobody.
    """
    if weight.group is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise RuntimeError(
            f"expected share_gradients(model) in a distributed run with the factored gradient of {weight.name!r}, "
            "which DistributedDataParallel does not see; a group of this process alone trains it by itself"
        )

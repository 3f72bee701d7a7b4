"""Data-parallel training of unitary weights in O(k n) communication: what ranks agree on before and in a step."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ...projunn.gradient import FactoredGradient, GradientOperator
from ..reduced import ReducedGradient
from ..weight import UnitaryOwner, UnitaryWeight, unitary_weights


def share_gradients(module: nn.Module, group: dist.ProcessGroup | None = None) -> list[str]:
    """Makes the ranks of a group train the unitary weights of a module tree together.

    Call it on every rank, before wrapping the module in ``DistributedDataParallel``, which then moves the gradients of
    the other parameters alone; for ``fully_shard`` pass the unitary parameters as ``ignored_params``. The weights start
    as those of the group's first rank. Nothing else changes: ``projunn_step``, ``attach(model, optimizer)`` and
    ``ProjUNN`` take the step of the mean gradient on every rank.

    The step is where ranks meet, so every rank must take each: it may have accumulated as many backward passes as it
    likes (``no_sync`` has nothing to do for these weights), left weights out, or, out of data, come without a gradient,
    which counts as zeros. ``Join`` does not know of these steps; :func:`thin_products_hook` works within it.

    Until the step a gradient is this rank's own. What looks at ``.grad`` in between differs from rank to rank: clip the
    norm of the other parameters alone, take ``ShardedGradScaler`` in the place of ``GradScaler``, or use that hook.

    The elementwise direction of ``ProjUNN``, "rmsprop", and the samplers "column" and "svd", need the gradient as a
    matrix: then all of it is averaged, as DistributedDataParallel would.

    Args:
        module: any module tree; a copy of it shares nothing.
        group: the ranks; all by default. A group of one process trains by itself.

    Returns:
        Names of the unitary parameters.

    Raises:
        RuntimeError: if ``torch.distributed`` is not initialised.
        ValueError: for a module without unitary weights, or one that is wrapped or sharded already.
    """
    group = dist.group.WORLD if group is None and dist.is_available() else group
    if group is None:
        raise RuntimeError("expected torch.distributed to be initialised (init_process_group), but it is not")
    if any(isinstance(m, DistributedDataParallel) for m in module.modules()):
        raise ValueError("expected share_gradients(model) before DistributedDataParallel(model), got a wrapped module")
    weights = list(unitary_weights(module))
    if not weights:
        raise ValueError(f"expected a module with unitary weights, got a {type(module).__name__} without any")
    check_whole(weights)
    for owner in module.modules():
        if isinstance(owner, UnitaryOwner):
            owner.process_group = group  # type: ignore[assignment]  # torch promises tensors and modules alone
    for weight in unitary_weights(module):
        weight.drop_gradient()
        state = [weight.count, weight.previous, *(weight.memory or ())]
        for tensor in (weight.parameter.detach(), *(t for t in state if t is not None)):
            dist.broadcast(tensor, dist.get_global_rank(group, 0), group)
        weight.note()
    _ignore(module, {id(weight.parameter) for weight in weights})
    return [weight.name for weight in weights]


def _ignore(module: nn.Module, unitary: set[int]) -> None:
    """Keeps DistributedDataParallel from averaging the parameters of these ids, and from sending their buffers."""
    ignored = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    for prefix, owner in module.named_modules():
        names = [name for name, p in owner.named_parameters(recurse=False) if id(p) in unitary]
        state = tuple(f"{name}_" for name in names)
        names += [name for name, _ in owner.named_buffers(recurse=False) if name.startswith(state)]
        ignored.update(f"{prefix}.{name}" for name in names)  # DDP calls a parameter of the root ".weight"
    ignored |= {name.removeprefix(".") for name in ignored}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)


def with_gradients(weights: Iterable[UnitaryWeight]) -> list[tuple[UnitaryWeight, GradientOperator]]:
    """The weights that have a gradient, and the gradients: of a shared weight the mean over its ranks.

    A weight that other ranks of its group have used and this one has not gets a gradient of zeros, so that no rank
    waits for another.

    Raises:
        ValueError: for a weight that is sharded.
        RuntimeError: on all ranks of a group, if they have not taken the same steps.
    """
    weights = [weight for weight in weights if weight.parameter.requires_grad]
    check_whole(weights)
    gradients = [weight.gradient for weight in weights]
    for group in dict.fromkeys(weight.group for weight in weights if weight.group is not None):
        members = [i for i, weight in enumerate(weights) if weight.group == group]
        used = _used_anywhere([weights[i] for i in members], [gradients[i] is not None for i in members], group)
        for i, is_used in zip(members, used, strict=True):
            if is_used:
                gradients[i] = ReducedGradient(gradients[i] or _zeros_of(weights[i]), group)
    pairs = zip(weights, gradients, strict=True)
    return [(weight, gradient) for weight, gradient in pairs if gradient is not None]


def _used_anywhere(weights: Sequence[UnitaryWeight], here: list[bool], group: dist.ProcessGroup) -> list[bool]:
    """Of which weights some rank has a gradient; makes sure that all ranks draw the same random numbers for them."""
    count = torch.stack([weight.count for weight in weights])
    most = torch.stack([torch.tensor(here).to(count), count, -count])
    dist.all_reduce(most, dist.ReduceOp.MAX, group)
    for weight, last, minus_first in zip(weights, *most[1:].tolist(), strict=True):
        if last != -minus_first:
            raise RuntimeError(
                f"expected the unitary weight {weight.name!r} after as many steps on each rank, got {-minus_first} to "
                f"{last}; load a checkpoint on all ranks, and step on all of them, those without data included"
            )
    return most[0].bool().tolist()


def _zeros_of(weight: UnitaryWeight) -> GradientOperator:
    """The gradient of no rows."""
    *batch, m, n = weight.matrix.shape
    return FactoredGradient(weight.matrix.new_empty(*batch, 0, m), weight.matrix.new_empty(*batch, 0, n))


def check_whole(weights: Iterable[UnitaryWeight]) -> None:
    """Refuses weights of which each rank has but a part: their update is a rotation of all rows and columns.

    Raises:
        ValueError: for a parameter of ``fully_shard``, of tensor parallelism, or of ``FullyShardedDataParallel``; for a
            tensor that is computed from parameters, as by a parametrisation.
    """
    for weight in weights:
        parameter = weight.parameter
        matrix_dims = parameter.ndim - weight.is_complex
        # The first question answers most: torch's isinstance of a parameter takes ten times as long.
        is_own = type(parameter) is nn.Parameter or (
            isinstance(parameter, nn.Parameter) and not isinstance(parameter, DTensor)
        )
        if not is_own or matrix_dims < 2:
            sharded = (
                "share_gradients(model) and then fully_shard(model, ignored_params={w.parameter for w in "
                "unitary_weights(model)}) shard the others"
            )
            undone = (
                "what prunes or parametrises it is to be undone (parametrize.remove_parametrizations, prune.remove), "
                f"and retract_() called; if it is sharded, {sharded}"
            )
            raise ValueError(
                f"expected the unitary weight {weight.name!r} to be a parameter and whole on each rank, got a "
                f"{type(parameter).__name__} {tuple(parameter.shape)}; "
                f"{sharded if isinstance(parameter, (DTensor, nn.Parameter)) else undone}"
            )


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

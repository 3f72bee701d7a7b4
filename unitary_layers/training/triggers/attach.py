"""``attach``: the unitary step beside any torch optimiser's step, or when backward has finished."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer

from ..factored.amp import use_grad_scaler
from ..weight import unitary_weights
from .backward import BackwardHook, refuse_distributed, refuse_two_triggers
from .given import check_attached
from .guests import Guest
from .host import host_of
from .rates import LrScale, check_lr_scale, keep_rates
from .strangers import leave_alone, welcome


class AttachHandle:
    """Takes the hooks of one :func:`attach` away again."""

    def __init__(self, removers: list[Callable[[], None]]) -> None:
        self._removers = removers

    def remove(self) -> None:
        """Detaches; a second call does nothing."""
        while self._removers:
            self._removers.pop()()


def attach(
    module: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    scaler: GradScaler | None = None,
    lr_scale: LrScale | None = None,
) -> AttachHandle:
    """Makes an unmodified training loop train the unitary weights of a module.

    ``attach(model, optimizer)`` takes the projUNN step just before each step of the optimiser, so that a gradient that
    is refused stops both. (With a closure, or gradients that have a graph themselves, it comes after.) During its own
    step the optimiser (and a hook on it that is registered later) does not see the unitary weights. So neither its
    weight decay nor its momentum nor a moving average inside it reaches them. Accumulation, clipping, ``GradScaler``
    and ``maximize`` work as for any parameter, also within a closure; a step that the scaler skips is no step. A
    schedule of the optimiser's learning rate scales the rules' rates by its present value over its height: the rule's
    own rate is reached where the schedule is highest. What is taken for the height, and for which schedules it is
    better to give ``lr_scale``, is told in Note [What a rate is relative to]. Where there are factored gradients, name
    the ``GradScaler``.

    ``attach(model)`` takes the projUNN step by itself, as soon as a backward has finished: for the plain loop of one
    backward per step. Do not use it with gradient accumulation, clipping or ``GradScaler``, nor with weights that are
    shared between segments of reentrant checkpointing: it would step before they are done. Weights that are replaced or
    unfrozen later are found in the next forward of the module, if that is not compiled.

    Several modules may be attached to one optimiser: they step together. All weights of an attached module step that
    have a gradient, whether the optimiser holds them or not; if it holds a part of the module, the first
    step says so in a warning. A copy of the module or of the optimiser is not attached.

    Args:
        module: any module tree; its unitary weights are looked up anew at each step.
        optimizer: any torch optimiser whose step reads ``param_groups``, or a wrapper with it as ``optimizer``.
        scaler: the ``GradScaler`` that scales the losses. Layers with ``gradient="factored"`` then take the scale out
            before they sample. Layers that are added later are to be told by :func:`use_grad_scaler`.
        lr_scale: the factor of the rules' rates, in the place of the schedule's: a number, or a function of the
            weight's parameter group, asked at each step, as in ``lambda group: group["lr"] / peak``.

    Returns:
        A handle whose ``remove()`` undoes it.

    Raises:
        TypeError: for what is not a module or not an optimiser, or a wrapper of one that has no step hooks.
        ValueError: if the module has no unitary weight; for LBFGS, which keeps its own list of parameters; for an
            ``lr_scale`` that is no finite number of at least 0 (in the optimiser's step, if a function returns it); for
            the second form, if a module is wrapped by DistributedDataParallel, or with a scaler or ``lr_scale``; for
            both forms on one weight, in the optimiser's step if the second came later.
        RuntimeError: in the optimiser's step, for a layer that does not know the scaler, and as ``projunn_step``; then
            no unitary weight has been stepped.
    """
    optimizer = check_attached(module, optimizer)
    if next(unitary_weights(module), None) is None:
        raise ValueError(f"expected a module with unitary weights, got a {type(module).__name__} without any")
    if optimizer is not None:
        check_lr_scale(lr_scale)
        return _attach_to_optimizer(optimizer, Guest(module, scaler, lr_scale))
    if scaler is not None:
        raise ValueError("expected an optimizer with a GradScaler: attach(model) steps before gradients are unscaled")
    if lr_scale is not None:
        raise ValueError("expected an optimizer with lr_scale: attach(model) steps at the rate of each rule")
    return _attach_to_backward(module)


def _attach_to_optimizer(optimizer: Optimizer, guest: Guest) -> AttachHandle:
    if isinstance(optimizer, LBFGS):
        raise ValueError("expected an optimizer that steps the parameters of its param_groups, got LBFGS")
    refuse_two_triggers(unitary_weights(guest.module))
    host = host_of(optimizer)
    welcome(optimizer)
    if guest.scaler is not None:
        use_grad_scaler(guest.module, guest.scaler)
    host.guests.receive(guest)
    keep_rates(optimizer)  # those of groups that came after another module was attached
    return AttachHandle([partial(host.remove, optimizer, guest), partial(leave_alone, optimizer)])


def _attach_to_backward(module: nn.Module) -> AttachHandle:
    refuse_distributed(module)
    hook = BackwardHook(module)
    hook(module)
    return AttachHandle([hook.remove, module.register_forward_pre_hook(hook).remove])

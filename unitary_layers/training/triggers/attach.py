"""Two more triggers of the one step: beside any torch optimiser's step, or when backward has finished."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from ...linalg.transforms import is_transformed
from ..batch import step_of
from ..factored.amp import use_grad_scaler
from ..owners import weights_of
from ..step import step_from_gradients
from ..weight import unitary_weights
from .host import host_of
from .rates import BaseRates


class AttachHandle:
    """Takes the hooks of one :func:`attach` away again."""

    def __init__(self, removers: list[Callable[[], None]]) -> None:
        self._removers = removers

    def remove(self) -> None:
        """Detaches; a second call does nothing."""
        while self._removers:
            self._removers.pop()()


def attach(module: nn.Module, optimizer: Optimizer | None = None, *, scaler: GradScaler | None = None) -> AttachHandle:
    """Makes an unmodified training loop train the unitary weights of a module.

    ``attach(model, optimizer)`` takes the projUNN step whenever the optimiser steps, and first: a gradient that is
    refused stops both. (With a closure, or gradients that have a graph themselves, it has to come second.) During its
    own step the optimiser (and a hook on it that is registered later) does not see the unitary weights, so neither
    weight decay nor momentum nor a moving average inside it reaches them. Accumulation, clipping, ``GradScaler`` and
    ``maximize`` work as for any parameter, also within a closure; a step that the scaler skips is no step. A schedule
    of the optimiser's learning rate scales the rules' rates by the same factor, relative to the base rate
    (``group["initial_lr"]``, or the rate when the group was first seen). A ``GradScaler`` is to be named where
    there are factored gradients.

    ``attach(model)`` takes it by itself as soon as a backward has finished: for the plain loop of one backward per
    step. Do not use it with gradient accumulation, clipping or ``GradScaler``, nor with weights that are shared
    between segments of reentrant checkpointing: it would step before they are done. Weights that are replaced or
    unfrozen later are found in the next forward of the module, if that is not compiled.

    Several modules may be attached to one optimiser: they step together. A copy of the module or of the optimiser is
    not attached.

    Args:
        module: any module tree; its unitary weights are looked up anew at each step.
        optimizer: any torch optimiser whose step reads ``param_groups``.
        scaler: the ``GradScaler`` that scales the losses, needed where there are layers with ``gradient="factored"``.
            Their gradients are unscaled by it, and where one has overflowed the whole step is skipped. Layers that are
            added later are to be told by :func:`use_grad_scaler`.

    Returns:
        A handle whose ``remove()`` undoes it.

    Raises:
        TypeError: for what is not a module or not an optimiser, or a wrapper of one that has no step hooks.
        ValueError: if the module has no unitary weight; for LBFGS, which keeps its own list of parameters; for a base
            rate of 0 (in the optimiser's step, if the group came later); for the second form, if a module is wrapped by
            DistributedDataParallel, or with a scaler.
        RuntimeError: in the optimiser's step, for a layer that does not know the scaler, and as ``projunn_step``; then
            no unitary weight has been stepped.
    """
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected optimizer to be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if next(unitary_weights(module), None) is None:
        raise ValueError(f"expected a module with unitary weights, got a {type(module).__name__} without any")
    if optimizer is not None:
        return _attach_to_optimizer(module, optimizer, scaler)
    if scaler is not None:
        raise ValueError("expected an optimizer with a GradScaler: attach(model) steps before gradients are unscaled")
    return _attach_to_backward(module)


def _attach_to_optimizer(module: nn.Module, optimizer: Optimizer, scaler: GradScaler | None) -> AttachHandle:
    if isinstance(optimizer, LBFGS):
        raise ValueError("expected an optimizer that steps the parameters of its param_groups, got LBFGS")
    BaseRates().factors(optimizer, [weight.parameter for weight in unitary_weights(module)])  # raises, if it does
    host, entry = host_of(optimizer), (module, scaler)
    if scaler is not None:
        use_grad_scaler(module, scaler)
    host.attached.append(entry)
    host.rates.factors(optimizer, ())  # from now on relative to the present rates
    return AttachHandle([partial(host.remove, optimizer, entry)])


class _BackwardHook:
    """Steps when a backward has finished in which a unitary weight got a gradient. A copy of it does nothing."""

    def __init__(self, module: nn.Module | None = None) -> None:
        self.module: Callable[[], nn.Module | None] = weakref.ref(module) if module is not None else lambda: None
        self.fired: dict[int, list[Tensor]] = {}  # the weights that got a gradient, by the number of the backward
        self.handles: dict[int, RemovableHandle] = {}  # by the identity of the parameter

    def __reduce__(self) -> tuple[type["_BackwardHook"], tuple[()]]:
        return _BackwardHook, ()  # by which a deepcopy or a pickle of the module takes it along

    def __call__(self, module: nn.Module, *_: Any) -> None:
        """Hooks those of the weights that are new, or can have a gradient now; before each forward."""
        if torch.compiler.is_compiling() or is_transformed() or self.module() is not module:
            return
        self.handles = {i: handle for i, handle in self.handles.items() if handle.hooks_dict_ref() is not None}
        for weight in unitary_weights(module):
            p, handle = weight.parameter, self.handles.get(id(weight.parameter))
            is_hooked = handle is not None and handle.hooks_dict_ref() is p._post_accumulate_grad_hooks is not None
            # Under functional_call it may be a tensor that is no leaf, and of no business of ours.
            if isinstance(p, nn.Parameter) and p.is_leaf and p.requires_grad and not is_hooked:
                self.handles[id(p)] = p.register_post_accumulate_grad_hook(self.on_gradient)

    def on_gradient(self, parameter: Tensor) -> None:
        # The engine calls back when this backward is over; the hook itself touches no weight and no gradient. A
        # backward is known by its number and not by a flag, which one that raised halfway would leave up.
        number = torch._C._current_graph_task_id()
        if number not in self.fired:
            self.fired[number] = []
            Variable._execution_engine.queue_callback(partial(self.when_backward_has_finished, number))
        self.fired[number].append(parameter)

    def when_backward_has_finished(self, number: int) -> None:
        fired, module = self.fired.pop(number), self.module()
        for stale in [other for other in self.fired if other < number - 100]:  # no more are nested
            del self.fired[stale]  # of a backward that raised
        if module is None:  # but its weights live on, in other modules
            weights = list(weights_of(fired).values())
        else:
            _refuse_distributed(module)
            ids = set(map(id, fired))
            weights = [weight for weight in unitary_weights(module) if id(weight.parameter) in ids]
        step_from_gradients(weights, lambda weight, gradient: step_of(weight, gradient, weight.rule))

    def remove(self) -> None:
        while self.handles:
            self.handles.popitem()[1].remove()


def _attach_to_backward(module: nn.Module) -> AttachHandle:
    _refuse_distributed(module)
    hook = _BackwardHook(module)
    hook(module)
    return AttachHandle([hook.remove, module.register_forward_pre_hook(hook).remove])


def _refuse_distributed(module: nn.Module) -> None:
    distributed = torch.distributed
    many = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if many or any(isinstance(m, DistributedDataParallel) for m in module.modules()):
        raise ValueError(
            "attach(model) steps before DistributedDataParallel has summed the gradients; expected "
            "attach(model, optimizer) or model.projunn_step() in a distributed run"
        )

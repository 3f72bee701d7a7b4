"""Adopts optimisers that step unitary weights without having been attached."""

import threading
import weakref
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..owners import Lookup, register_owner
from ..weight import UnitaryOwner
from .host import NAME, closure_of, host_of
from .saved import wrapped
from .telling import warn_of_strangers

# Note [Strangers]
# A training script that knows nothing of this package gives all parameters to an optimiser of torch, which would take
# unitary weights for ordinary ones. torch tells of every step of every optimiser before it is taken. So when one is
# about to step a unitary weight that has a gradient, and is neither attached nor ProjUNN nor a wrapper of such a one,
# it is attached there and then, and says so once. One that was attached to other modules takes such a weight in beside
# theirs, and says so too, until one of them is detached. A loop that calls ``projunn_step`` first leaves no gradient,
# and is left alone. An optimiser whose handle was removed stays detached, LBFGS is only reported, and a compiled step
# is not looked into: what these do to a weight is noticed as told in Note [Off the manifold].

_lock = threading.Lock()
_hooks: list[Any] = []
_lookups: weakref.WeakKeyDictionary[Optimizer, Lookup] = weakref.WeakKeyDictionary()
_detached: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def enrol(module: UnitaryOwner) -> None:
    """Lists a module for :func:`weights_of`, and from now on looks at every optimiser of torch before it steps."""
    register_owner(module)
    with _lock:
        if not _hooks:
            _hooks.append(register_optimizer_step_pre_hook(_before_step))


def leave_alone(optimizer: Optimizer) -> None:
    """Has an optimiser that was detached stay so, until it is attached again."""
    _detached.add(optimizer)


def welcome(optimizer: Optimizer) -> None:
    """Takes :func:`leave_alone` back."""
    _detached.discard(optimizer)


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling() or any(map(_knows, (optimizer, *wrapped(optimizer)))):
        return
    has_closure = closure_of(args, kwargs) is not None  # which is to make the gradients
    held = [p for group in optimizer.param_groups for p in group["params"] if has_closure or p.grad is not None]
    if not held or optimizer in _detached:
        return
    weights = [w for p, w in _lookups.setdefault(optimizer, Lookup()).weights(held).items() if p.requires_grad]
    if not weights:
        return
    if isinstance(optimizer, LBFGS):
        leave_alone(optimizer)
        advice = "LBFGS cannot be attached: take another optimiser"
    else:
        host_of(optimizer).guests.held = []  # whose hook comes next, and looks
        advice = "It is attached now, so these move by their own rules. To say so, call attach(model, optimizer) before"
    warn_of_strangers(optimizer, weights, advice)


def _knows(optimizer: Optimizer) -> bool:
    return NAME in vars(optimizer) or hasattr(optimizer, "steps_unitary_weights")

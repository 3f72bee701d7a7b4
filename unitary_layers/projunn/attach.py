"""Two more triggers of the one step: after any torch optimiser's step, or when backward has finished."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer

from ..linalg import LowRank
from .amp import use_grad_scaler
from .batch import Step
from .gradient import GradientOperator
from .hook import projunn_step, step_from_gradients
from .weight import UnitaryWeight, clear_collected, unitary_weights


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

    ``attach(model, optimizer)`` takes the projUNN step whenever the optimiser steps. The hook owns the unitary weights:
    during the step the optimiser does not see them, so neither weight decay nor momentum nor a moving average inside it
    reaches them. Accumulation, clipping and ``GradScaler`` work as for any parameter; a step that the scaler skips is
    no step. A schedule of the optimiser's learning rate scales the rules' rates by the same factor, relative to the
    base rate (``group["initial_lr"]``, or the rate at the time of attaching). ``optimizer.zero_grad()`` reaches
    factored gradients too, clipping does not, and a ``GradScaler`` has to be named, for they are no ``.grad``.

    ``attach(model)`` takes it by itself as soon as a backward has finished: for the plain loop of one backward per
    step. Do not use it with gradient accumulation, clipping or ``GradScaler``, nor with weights that are shared
    between segments of reentrant checkpointing: it would step before they are done.

    A copy of the module or of the optimiser is not attached.

    Args:
        module: any module tree; its unitary weights are looked up anew at each step.
        optimizer: any torch optimiser whose step reads ``param_groups``.
        scaler: the ``GradScaler`` that scales the losses, needed where there are layers with ``gradient="factored"``.
            Their gradients are unscaled by it, and where one has overflowed the whole step is skipped. Layers that are
            added later are to be told by :func:`use_grad_scaler`.

    Returns:
        A handle whose ``remove()`` undoes it.

    Raises:
        TypeError: for what is not a module or not an optimiser.
        ValueError: if the module has no unitary weight; for LBFGS, which keeps its own list of parameters; for the
            second form, if a module is wrapped by DistributedDataParallel, or with a scaler.
        RuntimeError: in the optimiser's step, for a layer that does not know the scaler; nothing has been stepped.
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


@contextmanager
def without_parameters(optimizer: Optimizer, hidden: set[Tensor]) -> Iterator[None]:
    """Within it the optimiser's groups lack the hidden parameters."""
    groups = [(group, group["params"]) for group in optimizer.param_groups]
    try:
        for group, parameters in groups:
            group["params"] = [p for p in parameters if p not in hidden]
        yield
    finally:
        for group, parameters in groups:
            group["params"] = parameters


# Note [The hook owns the unitary weights]
# To undo what a host optimiser did to a weight one would need a copy of it; to take its .grad away would leave weight
# averages inside the optimiser and closures uncovered. So the weights leave the param_groups for the duration of the
# host's step and return after it. Scaling, unscaling and clipping happen before and see them as usual.


class _OptimizerHook:
    """The pair of hooks around the host's step."""

    def __init__(self, module: nn.Module, optimizer: Optimizer, scaler: GradScaler | None) -> None:
        self.module, self.scaler = module, scaler
        self.base_rates = [_base_rate(group) for group in optimizer.param_groups]
        self.hiding: AbstractContextManager[None] | None = None
        self.removed = self.overflowed = False

    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.restore()  # where the host's last step raised, it had no after
        weights = list(unitary_weights(self.module))
        hidden: set[Tensor] = {weight.parameter for weight in weights}
        if self.scaler is not None:
            _refuse_kept(weights)
            if self.scaler.is_enabled():
                _refuse_scaled(weights, self.scaler)
        self.overflowed = self.scaler is not None and not all(map(_is_finite_if_factored, weights))
        if self.overflowed:  # as the scaler would skip the step, had it seen these gradients
            hidden.update(p for group in optimizer.param_groups for p in group["params"])
        self.hiding = without_parameters(optimizer, hidden)
        self.hiding.__enter__()

    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.restore()
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) > 0:
            return
        if self.overflowed and self.scaler is not None:
            clear_collected(unitary_weights(self.module))
            for found in self.scaler._found_inf_per_device(optimizer).values():
                found.fill_(1)  # and its next update lowers the scale
            return
        rates = self.schedule(optimizer)

        def to_take(weight: UnitaryWeight, gradient: GradientOperator | LowRank) -> Step:
            rule = weight.rule.with_lr(weight.rule.lr * rates.get(weight.parameter, rates[None]))
            # A fused optimiser was to unscale the gradients itself.
            if scale is not None and not weight.is_factored:
                gradient = gradient.scale(1 / float(scale))
            return Step(weight, gradient, rule)

        step_from_gradients(unitary_weights(self.module), to_take)

    def reach_by_zero_grad(self, optimizer: Optimizer) -> None:
        """Makes ``optimizer.zero_grad()`` forget factored gradients, until the hook is removed."""
        of_torch = optimizer.zero_grad

        @functools.wraps(of_torch)
        def zero_grad(set_to_none: bool = True) -> None:
            of_torch(set_to_none)
            if not self.removed:
                clear_collected(unitary_weights(self.module))

        vars(optimizer)["zero_grad"] = zero_grad  # as schedulers do with step; there is no hook

    def remove(self) -> None:
        self.restore()
        if self.scaler is not None and not self.removed:
            use_grad_scaler(self.module, None)
        self.removed = True

    def restore(self) -> None:
        if self.hiding is not None:
            self.hiding.__exit__(None, None, None)
            self.hiding = None

    def schedule(self, optimizer: Optimizer) -> dict[Tensor | None, float]:
        """The present rate over the base rate, by parameter; under None, for those in no group, the first group's."""
        rates: dict[Tensor | None, float] = {}
        for i, group in enumerate(optimizer.param_groups):
            base = self.base_rates[i] if i < len(self.base_rates) else _base_rate(group)
            factor = 1.0 if base is None else float(group["lr"]) / float(group.get("initial_lr", base))
            rates.setdefault(None, factor)
            rates.update(dict.fromkeys(group["params"], factor))
        return rates


def _base_rate(group: dict[str, Any]) -> float | None:
    """The rate that a schedule is relative to; None for an optimiser without one (Adafactor's relative steps)."""
    rate = group.get("initial_lr", group.get("lr"))
    if rate is None:
        return None
    if float(rate) == 0:
        raise ValueError(
            "expected an optimizer with a base learning rate above 0, which the schedule is relative to; got 0"
        )
    return float(rate)


def _is_finite_if_factored(weight: UnitaryWeight) -> bool:
    factors = None if weight.collected is None else weight.collected.low_rank
    return factors is None or all(bool(torch.isfinite(factor).all()) for factor in factors)


def _refuse_kept(weights: Iterable[UnitaryWeight]) -> None:
    """A rank alone cannot tell whether the sum over all overflows; see Note [Kept until the step]."""
    for weight in weights:
        if weight.group is not None and weight.collected is not None:
            raise ValueError(
                f"expected a dense gradient of {weight.name!r}, which shares its gradients with other ranks, under a "
                'GradScaler; got gradient="factored"'
            )


def _refuse_scaled(weights: Iterable[UnitaryWeight], scaler: GradScaler) -> None:
    """A layer that came into the tree later was not told the scaler when backward sampled its gradient."""
    for weight in weights:
        if weight.collected is not None and weight.collected.low_rank is not None and weight.scaler is not scaler:
            raise RuntimeError(
                f"expected the layer of {weight.name!r} to know the GradScaler of attach, got a factored gradient that "
                "was never unscaled; call use_grad_scaler(model, scaler) when layers have been added or replaced"
            )


def _attach_to_optimizer(module: nn.Module, optimizer: Optimizer, scaler: GradScaler | None) -> AttachHandle:
    if isinstance(optimizer, LBFGS):
        raise ValueError("expected an optimizer that steps the parameters of its param_groups, got LBFGS")
    if scaler is not None:
        use_grad_scaler(module, scaler)
    hook = _OptimizerHook(module, optimizer, scaler)
    hook.reach_by_zero_grad(optimizer)
    before = optimizer.register_step_pre_hook(hook.before)
    after = optimizer.register_step_post_hook(hook.after)
    return AttachHandle([before.remove, after.remove, hook.remove])


def _attach_to_backward(module: nn.Module) -> AttachHandle:
    _refuse_distributed(module)
    queued_for = [-1]

    def when_backward_has_finished() -> None:
        _refuse_distributed(module)
        projunn_step(module)

    def on_gradient(parameter: Tensor) -> None:
        # The engine calls back when this backward is over; the hook itself touches no weight and no gradient. A
        # backward is known by its number and not by a flag, which one that raised halfway would leave up.
        number = torch._C._current_graph_task_id()
        if queued_for[0] != number:
            queued_for[0] = number
            Variable._execution_engine.queue_callback(when_backward_has_finished)

    weights = [weight.parameter for weight in unitary_weights(module) if weight.parameter.requires_grad]
    return AttachHandle([p.register_post_accumulate_grad_hook(on_gradient).remove for p in weights])


def _refuse_distributed(module: nn.Module) -> None:
    distributed = torch.distributed
    many = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if many or any(isinstance(m, DistributedDataParallel) for m in module.modules()):
        raise ValueError(
            "attach(model) steps before DistributedDataParallel has summed the gradients; expected "
            "attach(model, optimizer) or model.projunn_step() in a distributed run"
        )

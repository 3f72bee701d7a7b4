"""The unitary step beside that of another optimiser, the host: before it, from gradients that the host does not see."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..linalg import LowRank
from .amp import use_grad_scaler
from .batch import Step
from .gradient import GradientOperator
from .hook import step_from_gradients
from .weight import UnitaryWeight, clear_collected, unitary_weights


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
# Their step is taken before the host's, so that a gradient which is refused stops both; with a closure, which computes
# the gradients within the host's step, after it. To undo what the host did to a weight one would need a copy of it; to
# take its .grad away would leave weight averages inside the optimiser uncovered. So the weights leave the param_groups
# for the duration of the host's step, without its closure, and return after it. Scaling, unscaling and clipping happen
# before, or in the closure, and see them as usual.


class HostHook:
    """The pair of hooks around the host's step."""

    def __init__(self, module: nn.Module, optimizer: Optimizer, scaler: GradScaler | None) -> None:
        self.module, self.scaler = module, scaler
        self.rates = BaseRates()
        self.rates.factors(optimizer, {weight.parameter for weight in unitary_weights(module)})
        self.hiding: Any = None
        if scaler is not None:
            use_grad_scaler(module, scaler)
        if not hasattr(type(optimizer).step, "hooked"):  # wrappers that do not call Optimizer.__init__
            optimizer._patch_step_function()  # type: ignore[no-untyped-call]  # torch's has no annotations
        self._reach_by_zero_grad(optimizer)
        before = optimizer.register_step_pre_hook(self.before)
        after = optimizer.register_step_post_hook(self.after)
        # First, so that of several attachments the last to hide its weights is the first to show them again.
        optimizer._optimizer_step_post_hooks.move_to_end(after.id, last=False)  # type: ignore[attr-defined]
        self.handles = [before, after]
        if hasattr(optimizer, "_optimizer_state_dict_pre_hooks"):  # such a wrapper has none
            self.handles.append(optimizer.register_state_dict_pre_hook(lambda _: self.show()))

    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Before the host's step: ours, if the gradients are there; and the weights out of sight."""
        self.show()  # where the host's last step raised, it had no after
        hidden: set[Tensor] = {weight.parameter for weight in unitary_weights(self.module)}
        if (closure := _closure(args, kwargs)) is None:
            if not self.take(optimizer):  # as the scaler would skip the step, had it seen these gradients
                hidden.update(p for group in optimizer.param_groups for p in group["params"])
        else:
            self.rates.factors(optimizer, hidden)  # raises now, if it does

        def hide() -> None:
            self.hiding = without_parameters(optimizer, hidden)
            self.hiding.__enter__()

        hide()
        if closure is None:
            return args, kwargs

        @functools.wraps(closure)
        def seeing() -> Any:
            self.show()
            loss = closure()
            hide()
            return loss

        return ((optimizer, seeing), kwargs) if len(args) > 1 else (args, kwargs | {"closure": seeing})

    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """After the host's step: the weights back in sight, and our step, if a closure has made the gradients."""
        self.show()
        if _closure(args, kwargs) is not None:
            self.take(optimizer)

    def take(self, optimizer: Optimizer) -> bool:
        """Takes the unitary step; False where an overflow that the scaler has not seen forbids it to the host too."""
        weights = list(unitary_weights(self.module))
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) > 0:
            return True  # and a fused host takes none
        if self.scaler is not None:
            _refuse_kept(weights)
            if self.scaler.is_enabled():
                _refuse_scaled(weights, self.scaler)
            if not all(map(_is_finite_if_factored, weights)):
                clear_collected(weights)
                for found in self.scaler._found_inf_per_device(optimizer).values():
                    found.fill_(1)  # and its next update lowers the scale
                return False
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        factors = self.rates.factors(optimizer, {weight.parameter for weight in weights})

        def to_take(weight: UnitaryWeight, gradient: GradientOperator | LowRank) -> Step:
            factor, uphill = factors[weight.parameter]
            # A fused optimiser was to unscale the gradients itself.
            by = (-1.0 if uphill else 1.0) / (1.0 if scale is None or weight.is_factored else float(scale))
            rule = weight.rule.with_lr(weight.rule.lr * factor)
            return Step(weight, gradient if by == 1 else gradient.scale(by), rule)

        step_from_gradients(weights, to_take)
        return True

    def remove(self) -> None:
        """Takes the hooks away, and lets go of the module."""
        self.show()
        while self.handles:
            self.handles.pop().remove()
        if self.scaler is not None:
            use_grad_scaler(self.module, None)
        self.module, self.scaler = nn.Module(), None

    def show(self) -> None:
        """Puts the weights back into the groups, if they are hidden."""
        if self.hiding is not None:
            self.hiding.__exit__(None, None, None)
            self.hiding = None

    def _reach_by_zero_grad(self, optimizer: Optimizer) -> None:
        """Makes ``optimizer.zero_grad()`` forget factored gradients, as long as the hook knows the module."""
        of_torch = optimizer.zero_grad

        @functools.wraps(of_torch)
        def zero_grad(set_to_none: bool = True) -> None:
            self.show()
            of_torch(set_to_none)
            clear_collected(unitary_weights(self.module))

        vars(optimizer)["zero_grad"] = zero_grad  # as schedulers do with step; there is no hook


class BaseRates:
    """What the rates of a host's groups are relative to: those that they had when first seen."""

    def __init__(self) -> None:
        self._first: list[float | None] = []  # None for an optimiser without a rate (Adafactor's relative steps)

    def factors(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> dict[Tensor, tuple[float, bool]]:
        """By parameter the present rate over the base rate, and whether to go up; for those in no group the first's.

        Raises:
            ValueError: for a group of one of the parameters with a base rate of 0.
        """
        groups = optimizer.param_groups
        self._first += [_base_rate(group) for group in groups[len(self._first) :]]
        place = {p: i for i, group in enumerate(groups) for p in group["params"]}
        return {p: self._factor(groups, place.get(p, 0)) for p in parameters}

    def _factor(self, groups: list[dict[str, Any]], i: int) -> tuple[float, bool]:
        group, base = groups[i], self._first[i]
        base = group.get("initial_lr", base)
        if base is not None and float(base) == 0:
            raise ValueError(
                "expected a base learning rate above 0 for the group of a unitary weight, which the schedule is "
                "relative to; got 0"
            )
        return 1.0 if base is None else float(group["lr"]) / float(base), bool(group.get("maximize", False))


def _base_rate(group: dict[str, Any]) -> float | None:
    rate = group.get("initial_lr", group.get("lr"))
    return None if rate is None else float(rate)


def _closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """What was given to ``step(closure)``, of whose arguments the first is the optimiser itself."""
    closure: Callable[[], Any] | None = args[1] if len(args) > 1 else kwargs.get("closure")
    return closure


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

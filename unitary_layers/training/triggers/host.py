"""The unitary step beside that of another optimiser, the host: before it, from gradients that the host does not see."""

import functools
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from .guests import Guest, Guests
from .rates import keep_rates
from .saved import adopt, with_momenta, without_momenta


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


# Note [The host does not own the unitary weights]
# Their step is taken before the host's, so that a gradient which is refused stops both; with a closure, which computes
# the gradients within the host's step, after it. To undo what the host did to a weight one would need a copy of it; to
# take its .grad away would leave weight averages inside the optimiser uncovered. So the weights leave the param_groups
# for the duration of the host's step, without its closure, and return after it. Scaling, unscaling and clipping happen
# before, or in the closure, and see them as usual. A host that differentiates the graph of the gradients needs the
# weights that made them: it steps first too. What is around the step is there twice. A method of the instance knows
# where the step begins and ends, whatever it calls and raises; hooks are there for who has kept the host's own method.

NAME = "_unitary_host"
METHODS = ("step", "zero_grad", "state_dict", "load_state_dict")
# Of each optimiser, those of its unitary weights; they outlive a host that is detached and attached again.
_momenta: WeakKeyDictionary[Optimizer, MutableMapping[Tensor, Any]] = WeakKeyDictionary()


class Host:
    """An optimiser beside which the unitary weights of one or more modules are stepped, all at once."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.guests = Guests()
        keep_rates(optimizer)
        self.hiding: Any = None
        self.entered = False  # by our method, so that hooks have nothing to do
        self.in_step = self.has_closed = False  # whether within the host's step; and behind its closure
        self.is_late = self.to_zero = False  # whether to step after the host; and to zero gradients before its closure
        if not hasattr(type(optimizer).step, "hooked"):  # wrappers that do not call Optimizer.__init__
            optimizer._patch_step_function()  # type: ignore[no-untyped-call]  # torch's has no annotations
        self.handles = [optimizer.register_step_pre_hook(self.before), optimizer.register_step_post_hook(self.after)]
        self.momenta = _momenta.setdefault(optimizer, WeakTensorKeyDictionary())
        adopt(optimizer, self.momenta)
        self.replaced = {name: getattr(optimizer, name) for name in METHODS}
        self.ours = {name: MethodType(self.method(name), optimizer) for name in self.replaced}
        vars(optimizer).update({**self.ours, NAME: self})  # as schedulers do

    def method(self, name: str) -> Callable[..., Any]:
        """The host's step with ours beside it, its ``zero_grad`` for all weights, its state dict with our momenta."""
        of_torch = self.replaced[name]

        @functools.wraps(of_torch)
        def step(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            (_, *args), kwargs = self.before(optimizer, (optimizer, *args), kwargs)
            self.entered = True
            try:
                result = of_torch(*args, **kwargs)
            finally:
                self.entered = False
                self.show()
            self.after(optimizer, (), {})
            return result

        @functools.wraps(of_torch)
        def zero_grad(_: Optimizer, *args: Any, **kwargs: Any) -> None:
            self.zero_grad(functools.partial(of_torch, *args, **kwargs))

        @functools.wraps(of_torch)
        def state_dict(optimizer: Optimizer) -> dict[str, Any]:
            self.show()
            unitary = {weight.parameter for weight in self.guests.weights()}  # some may be so no more
            momenta = {parameter: own for parameter, own in self.momenta.items() if parameter in unitary}
            return with_momenta(of_torch(), optimizer, momenta)

        @functools.wraps(of_torch)
        def load_state_dict(optimizer: Optimizer, state_dict: dict[str, Any], *args: Any) -> None:
            self.show()
            rest, momenta = without_momenta(state_dict, optimizer)
            of_torch(rest, *args)  # first: what it refuses changes nothing
            keep_rates(optimizer)
            self.momenta.clear()
            self.momenta.update(momenta)

        ours: tuple[Callable[..., Any], ...] = (step, zero_grad, state_dict, load_state_dict)
        return dict(zip(METHODS, ours, strict=True))[name]

    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Before the host's step: ours, if the gradients are there; and the weights out of sight."""
        if self.entered:
            return args, kwargs
        self.show()
        closure = closure_of(args, kwargs)
        self.guests.look(optimizer, has_closure=closure is not None)
        found = self.guests.found()  # once: each walk through a model of many layers takes its time
        hidden: set[Tensor] = {weight.parameter for weight, _ in found}
        self.is_late = closure is not None or any(p.grad is not None and p.grad.requires_grad for p in hidden)
        if self.is_late:
            self.guests.factors(optimizer, found)  # raises now, if it does
        elif not self.guests.take(optimizer, self.momenta, found):
            # As the scaler would skip the step, had it seen these gradients.
            hidden.update(p for group in optimizer.param_groups for p in group["params"])
        self.has_closed = self.to_zero = False
        self.hide(optimizer, hidden)
        if closure is None:
            return args, kwargs

        @functools.wraps(closure)
        def seeing(*args: Any, **kwargs: Any) -> Any:
            self.show()
            if self.to_zero:
                self.drop_gradients()
            loss = closure(*args, **kwargs)
            if self.guests:
                self.has_closed = True
                self.hide(optimizer, {weight.parameter for weight in self.guests.weights()})
            return loss

        return ((optimizer, seeing, *args[2:]), kwargs) if len(args) > 1 else (args, kwargs | {"closure": seeing})

    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """After the host's step: the weights back in sight, and our step, if it was to wait for the host's."""
        if self.entered:
            return
        self.show()
        if self.is_late:
            self.is_late = False
            self.guests.take(optimizer, self.momenta, self.guests.found())

    def hide(self, optimizer: Optimizer, hidden: set[Tensor]) -> None:
        """Takes parameters out of the groups, for the host's step."""
        self.in_step = True
        self.hiding = without_parameters(optimizer, hidden)
        self.hiding.__enter__()

    def show(self) -> None:
        """Puts the parameters back into the groups, if they are hidden."""
        self.in_step = False
        if self.hiding is not None:
            self.hiding.__exit__(None, None, None)
            self.hiding = None

    def zero_grad(self, of_torch: Callable[[], None]) -> None:
        """That of the host, and within its step also for weights that it does not see.

        What a closure has left there is for the step that is to come, though the host is done with it, if it does not
        call the closure once more.
        """
        of_torch()
        if self.has_closed and self.in_step:
            self.to_zero = True
        elif self.in_step:
            self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forgets those of all unitary weights."""
        self.to_zero = False
        for weight in self.guests.weights():
            weight.drop_gradient()

    def remove(self, optimizer: Optimizer, guest: Guest) -> None:
        """Lets go of one module, and of the optimiser after the last."""
        self.show()
        self.guests.part_from(guest)
        if self.guests.modules:
            return
        while self.handles:
            self.handles.pop().remove()
        vars(optimizer).pop(NAME, None)
        for name, of_torch in self.replaced.items():
            if vars(optimizer).get(name) is self.ours[name]:  # nobody has wrapped it since
                del vars(optimizer)[name]
                if getattr(optimizer, name) != of_torch:
                    vars(optimizer)[name] = of_torch


def host_of(optimizer: Optimizer) -> Host:
    """The host that an optimiser is already, or a new one.

    Raises:
        TypeError: for a wrapper of optimisers that has no hooks around its step.
    """
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"expected an optimizer with step hooks, got a {type(optimizer).__name__} that never called "
            "Optimizer.__init__; attach to the optimizer that it wraps"
        )
    found = vars(optimizer).get(NAME)
    return found if isinstance(found, Host) else Host(optimizer)


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """What was given to ``step(closure)``, of whose arguments the first is the optimiser itself."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    return closure if callable(closure) else None

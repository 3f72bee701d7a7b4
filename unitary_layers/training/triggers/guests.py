"""The modules whose unitary weights are stepped beside an optimiser, and that step."""

from collections.abc import MutableMapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ...projunn.gradient import GradientOperator
from ..batch import Step, step_of
from ..factored.amp import has_overflowed, tell_owners, unscale_factored
from ..owners import Lookup
from ..step import step_from_gradients
from ..weight import UnitaryWeight, clear_collected, unitary_weights
from .backward import refuse_two_triggers
from .rates import LrScale, factors
from .telling import warn_of_a_part, warn_of_strangers


class Guest(NamedTuple):
    """One module that is stepped beside an optimiser.

    Attributes:
        module: whose unitary weights are stepped.
        scaler: what scales its losses, or None.
        lr_scale: the factor of its rules' rates, a function of a group that gives it, or None for that of the schedule.
    """

    module: nn.Module
    scaler: GradScaler | None = None
    lr_scale: LrScale | None = None


Found = list[tuple[UnitaryWeight, LrScale | None]]


class Guests:
    """What is stepped beside one optimiser; a weight that several modules have is that of the first.

    Attributes:
        modules: those that were attached.
        held: the parameters that the optimiser holds, where unitary ones among them are to be stepped that no module
            has; else None. See Note [Strangers].
    """

    def __init__(self) -> None:
        self.modules: list[Guest] = []
        self.held: list[Tensor] | None = None
        self._lookup = Lookup()
        self._looked_at = 0  # so many parameters of the host, of which it said what there was to say
        self._has_parted = False

    def __bool__(self) -> bool:
        return bool(self.modules) or self.held is not None

    def receive(self, guest: Guest) -> None:
        """Takes one module in; from now on the modules say what to step."""
        self.modules.append(guest)
        self.held, self._looked_at = None, 0

    def look(self, optimizer: Optimizer, *, has_closure: bool) -> None:
        """Sees which parameters the optimiser holds, while all of them are in its groups; see Note [Strangers].

        Args:
            optimizer: the host.
            has_closure: whether the gradients are still to be made.
        """
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if self.held is None and len(held) != self._looked_at:
            self._look_around(optimizer, held, has_closure)
        if self.held is not None:
            self.held = held

    def _look_around(self, optimizer: Optimizer, held: list[Tensor], has_closure: bool) -> None:
        """Warns of unitary weights that the host holds and no module has, and of modules that it holds in part."""
        known = {weight.parameter for weight in self.weights()}
        strangers = [w for p, w in self._lookup.weights(held).items() if p not in known and p.requires_grad]
        stepped = [w for w in strangers if has_closure or w.parameter.grad is not None]
        if stepped and not self._has_parted:
            self.held = held
            names = " and ".join(type(guest.module).__name__ for guest in self.modules)
            advice = f"It was attached to {names} alone. This moves by its own rule from now on; attach its module too"
            warn_of_strangers(optimizer, stepped, advice)
        if stepped or not strangers:
            self._looked_at = len(held)
        for guest in self.modules:
            warn_of_a_part(optimizer, guest.module, has_closure)

    def found(self) -> Found:
        """The unitary weights of all modules, each once, and the factor that its module has named."""
        found = [(weight, guest.lr_scale) for guest in self.modules for weight in unitary_weights(guest.module)]
        found += [(weight, None) for weight in self._lookup.weights(self.held or ()).values()]
        return list({id(pair[0].parameter): pair for pair in reversed(found)}.values())[::-1]

    def weights(self) -> list[UnitaryWeight]:
        """The unitary weights, each once."""
        return [weight for weight, _ in self.found()]

    @staticmethod
    def factors(optimizer: Optimizer, found: Found) -> dict[Tensor, tuple[float, bool]]:
        """By weight the factor of its rule's rate, and whether to go up; raises where ``lr_scale`` is no factor."""
        return factors(optimizer, {weight.parameter: lr_scale for weight, lr_scale in found})

    def take(self, optimizer: Optimizer, momenta: MutableMapping[Tensor, Any], found: Found) -> bool:
        """Takes the unitary step; False where an overflow that the scaler has not seen forbids it to the host too."""
        weights = [weight for weight, _ in found]
        refuse_two_triggers(weights)
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) > 0:
            return True  # and a fused host takes none
        for module, scaler, _ in self.modules:
            if scaler is not None and has_overflowed(module, scaler) and scaler.is_enabled():
                clear_collected(weights)
                for seen in scaler._found_inf_per_device(optimizer).values():
                    seen.fill_(1)  # and its next update lowers the scale
                return False
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        factor_of = self.factors(optimizer, found)
        if scale is not None:
            unscale_factored(weights, scale)

        def to_take(weight: UnitaryWeight, gradient: GradientOperator) -> Step:
            factor, uphill = factor_of[weight.parameter]
            # A fused optimiser was to unscale the gradients itself.
            by = (-1.0 if uphill else 1.0) / (1.0 if scale is None or weight.is_factored else float(scale))
            rule = weight.rule.with_lr(weight.rule.rate * factor)
            return step_of(weight, gradient if by == 1 else gradient.scale(by), rule, momenta)

        step_from_gradients(weights, to_take)
        return True

    def part_from(self, guest: Guest) -> None:
        """Lets one module go, whose layers then know of no scaler, if no other module that shares them does."""
        self.modules.remove(guest)
        self._has_parted = True
        if guest.scaler is not None:
            tell_owners(guest.module, None)
            for module, scaler, _ in self.modules:
                if scaler is not None:
                    tell_owners(module, scaler)

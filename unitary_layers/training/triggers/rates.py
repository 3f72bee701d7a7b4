"""What the rate of an optimiser says of the rate of a unitary weight: where its schedule is, relative to its height."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# Note [What a rate is relative to]
# A rule has a rate of its own. An optimiser's schedule scales it by lr / height: the rule's rate is reached where the
# schedule is at its height, and never exceeded. A group does not say how high its schedule will go. Its height is taken
# to be the largest of three: the largest rate that it has stepped with; "max_lr", which OneCycleLR writes into it; and
# the rate that it was given: "initial_lr", which schedulers write, times timm's "lr_scale" for layer decay; without a
# scheduler, the rate when it was attached. The last is a guess. It is dropped while the rates have risen and come down
# again without reaching it, as those of Noam's LambdaLR on lr=1.0 do. So a warm-up to the rate that was given is
# followed from its first step, and so is OneCycleLR. A first rise to a height that no group tells, that of CyclicLR,
# of a LambdaLR with factors above 1 or of a search for a rate, is made at the rule's full rate; Noam's first rise is
# made at lr / initial_lr. From then on they are followed too. ``attach(..., lr_scale=)`` says it outright.
# All of this is kept in the group itself, which state dicts carry, and none of it elsewhere. So the order of building,
# attaching, loading and scheduling does not matter.

GIVEN, STEPPED = "reference_lr", "stepped_lr"  # what is kept in a group
LrScale = float | Callable[[dict[str, Any]], float]


def keep_rates(optimizer: Optimizer) -> None:
    """Keeps the rates that the groups were given, for a schedule that keeps none; see Note above."""
    for group in optimizer.param_groups:
        if group.get("lr") is not None:
            group.setdefault(GIVEN, float(group["lr"]))


def lr_factor(group: dict[str, Any]) -> float:
    """The present rate of a group over the height of its schedule, in [0, 1]; 1 for an optimiser without rates.

    The present rate counts as one that the group has stepped with. See Note [What a rate is relative to].
    """
    if group.get("lr") is None:  # Adafactor's relative steps
        return 1.0
    lr = float(group["lr"])
    first, highest, lowest_since = group.get(STEPPED, (lr, lr, lr))
    highest, lowest_since = (lr, lr) if lr > highest else (highest, min(lr, lowest_since))
    group[STEPPED] = first, highest, lowest_since
    height = max(highest, float(group.get("max_lr", 0.0)))
    if not first < highest > lowest_since:
        given = float(group["initial_lr"]) * group.get("lr_scale", 1.0) if "initial_lr" in group else group.get(GIVEN)
        height = max(height, 0.0 if given is None else given)
    return lr / height if height else 0.0


def check_lr_scale(lr_scale: LrScale | None) -> None:
    """Raises ``ValueError`` for what is neither a factor nor a function."""
    if lr_scale is not None and not callable(lr_scale):
        _checked(lr_scale, "lr_scale")


def factors(optimizer: Optimizer, lr_scales: Mapping[Tensor, LrScale | None]) -> dict[Tensor, tuple[float, bool]]:
    """By parameter the factor of its rule's rate, and whether to go up; for those in no group by the first group.

    Raises:
        ValueError: for a function of the user that returns no finite number of at least 0.
    """
    place = {p: group for group in optimizer.param_groups for p in group["params"]}
    found = {}
    for p, lr_scale in lr_scales.items():
        group = place.get(p, optimizer.param_groups[0])
        if lr_scale is None:
            factor = lr_factor(group)
        else:
            factor = _checked(lr_scale(group), "lr_scale(group)") if callable(lr_scale) else float(lr_scale)
        found[p] = factor, bool(group.get("maximize", False))
    return found


def _checked(value: float, name: str) -> float:
    if not isinstance(value, (int, float, Tensor)) or not 0 <= float(value) <= sys.float_info.max:
        raise ValueError(f"expected {name} to be a finite number of at least 0, got {value!r}")
    return float(value)

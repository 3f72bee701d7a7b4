"""How far a schedule has changed the learning rates of an optimiser."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


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

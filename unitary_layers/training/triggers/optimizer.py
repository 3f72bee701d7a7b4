"""One optimiser for a whole model: projUNN for its unitary weights, a rule of torch for the rest."""

import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from timm.optim._optim_factory import OptimInfo, default_registry
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from torch.optim.optimizer import ParamsT

from ...projunn.gradient import DenseGradient, GradientOperator
from ...projunn.rule import UpdateRule
from ..batch import Step, step_of
from ..owners import Lookup
from ..step import step_from_gradients
from ..weight import UnitaryWeight
from .given import check_parameters
from .host import without_parameters
from .rates import keep_rates, lr_factor

DIRECTIONS = (None, "spectral", "gradient", "rmsprop")
BASES: dict[str, type[Optimizer]] = {"rmsprop": RMSprop, "sgd": SGD, "adamw": AdamW}


class ProjUNN(Optimizer):
    r"""Trains a whole model: its unitary weights by projUNN, all other parameters by an optimiser of torch.

    A unitary weight moves by its layer's ``UpdateRule``. In the spectral direction a schedule of ``lr`` shortens its
    steps by its present value over its height, which is told in Note [What a rate is relative to]; the momentum is part
    of this optimiser's state. In any other direction its learning rate is ``lr * unitary_lr_scale``. Weight decay does
    not reach unitary weights. For how they are told apart see Note [How an optimiser knows a unitary weight].

    Args:
        params: parameters or groups of them; a group may set each of the options below.
        lr: learning rate of the ordinary parameters.
        unitary_lr_scale: in all but the spectral direction, learning rate of the unitary weights as a multiple of
            ``lr``. The paper's recurrent recipe is 1/32, that for images 1/10.
        direction: None for that of each layer's rule, or a short way to set one for all: "spectral"; the gradient
            ("gradient"), or the gradient divided elementwise by the root of a moving average of its ``|g|^2``
            ("rmsprop", the paper's recurrent recipe), which needs it as a matrix. Of a layer with
            ``gradient="factored"`` the layer's rule has decided that already, in backward.
        momentum: factor of the old momentum, of a base that has one.
        alpha: factor of the old average of ``|g|^2``, for ``direction="rmsprop"``, and of a base that has one.
        eps: added to the root.
        weight_decay: of the ordinary parameters, in the way of their base.
        maximize: go up instead of down.
        base: the rule for the ordinary parameters: "rmsprop", "sgd" or "adamw".

    Raises:
        TypeError, ValueError: for an option that is not a finite number, or out of range.
        ValueError: in ``step``, for a factored gradient and ``direction="rmsprop"``.
        RuntimeError: in ``step``, for a gradient of a unitary weight with a NaN or an infinity, as ``projunn_step``
            does, or one whose average overflows; then no parameter and no average has changed.

    Source of the directions and rates: Kiani et al., arXiv 2203.05483, section 4 and appendix E.

    Example:
        >>> optimizer = ProjUNN(UnitaryLinear(8, 8).parameters(), lr=1e-3)
    """

    steps_unitary_weights = True  # so that nobody attaches it

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        unitary_lr_scale: float = 1 / 32,
        direction: str | None = None,
        momentum: float = 0.0,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
        base: str = "rmsprop",
    ) -> None:
        check_parameters(params)
        if base not in tuple(BASES):
            raise ValueError(f"expected base to be one of {tuple(BASES)}, got {base!r}")
        options = {"unitary_lr_scale": unitary_lr_scale, "direction": direction, "momentum": momentum, "alpha": alpha}
        options |= {"lr": lr, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        self._lookup = Lookup()
        self._base: Optimizer | None = None
        self._base_name = base
        super().__init__(params, options)
        self._build_base()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):
            _check(self.defaults | param_group)
        super().add_param_group(param_group)
        _check(self.param_groups[-1])
        if self._base is not None:
            for key, value in self._base.defaults.items():
                self.param_groups[-1].setdefault(key, value)
        keep_rates(self)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it looks at modules, counters and numbers
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # no overloads
        """Takes one step of all parameters that have a gradient; those of unitary weights are None afterwards.

        Args:
            closure: evaluates the model anew, calls backward and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = {p: group for group in self.param_groups for p in group["params"]}
        weights = self._unitary_weights()
        for p, weight in weights.items():
            _check_factored(weight, groups[p])
        step_from_gradients(
            weights.values(), lambda weight, gradient: self._to_take(weight, gradient, groups[weight.parameter])
        )
        with without_parameters(self, set(weights)):
            assert self._base is not None  # since the constructor
            self._base.param_groups, self._base.state = self.param_groups, self.state  # others may have been assigned
            self._forget_unitary_states(weights)
            self._base.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_base_name": self._base_name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            _check(group)
        super().__setstate__(state)
        keep_rates(self)
        self._build_base()

    def _build_base(self) -> None:
        """The optimiser of the ordinary parameters, over these same groups and this same state."""
        self._lookup = Lookup()
        options = {name: self.defaults[name] for name in ("lr", "weight_decay", "maximize")}
        self._base = BASES[self._base_name](self.param_groups, **options)
        self._base.param_groups = self.param_groups
        self._base.state = self.state

    def _unitary_weights(self) -> dict[Tensor, UnitaryWeight]:
        """The unitary weights among the parameters, as their modules see them now: a rule may be another one."""
        return self._lookup.weights([p for group in self.param_groups for p in group["params"]])

    def _forget_unitary_states(self, weights: Collection[Tensor]) -> None:
        """Drops what is kept of weights whose layers have gone: ordinary parameters now, for the base to begin with."""
        if self._base_name != "sgd":  # the others take a state that counts no steps for damaged
            for p in [p for p, own in self.state.items() if own and "step" not in own and p not in weights]:
                del self.state[p]

    def _to_take(self, weight: UnitaryWeight, gradient: GradientOperator, group: dict[str, Any]) -> Step:
        """The step of a weight, and of what is kept here about it."""
        rule, direction = _rule(weight, group), group["direction"]
        if group["maximize"]:
            gradient = gradient.scale(-1.0)
        if weight.is_factored or direction in (None, "spectral", "gradient"):
            return step_of(weight, gradient, rule, self.state)
        g, buffer = gradient.dense(), self._squares(weight)
        modulus = g.abs()  # |g|^2 and not g * g, which for complex g is not even real
        square = (buffer * group["alpha"]).addcmul_(modulus, modulus, value=1 - group["alpha"])
        # 0 * infinity is NaN: an average that has overflowed is refused, for it would stop the weight for good.
        root = square.sqrt().add_(group["eps"]).add_(square, alpha=0)
        return Step(weight, DenseGradient(g / root), rule, [(buffer, square)])

    def _squares(self, weight: UnitaryWeight) -> Tensor:
        """The moving average ``(..., m, n)`` of ``|g|^2``, zero at first."""
        state = self.state[weight.parameter]
        if "square_avg" not in state:
            state["square_avg"] = torch.zeros_like(weight.matrix.real, memory_format=torch.contiguous_format)
        return state["square_avg"]


def _rule(weight: UnitaryWeight, group: dict[str, Any]) -> UpdateRule:
    """The layer's rule in the group's direction and at its rate."""
    declared, direction, n = weight.declared, None if weight.is_factored else group["direction"], min(weight.shape)
    if weight.previous is not None:  # which has that many columns, while "auto" is another rank in another direction
        declared = replace(declared, rank=weight.rule.rank_of(n))
    if direction == "spectral" or (direction is None and declared.is_spectral):
        if not declared.is_spectral:
            declared = replace(declared, direction="spectral", lr=None)
        rule = declared.suited(n, weight.fit)
        return rule.with_lr(rule.rate * lr_factor(group))
    rate = float(group["lr"]) * group["unitary_lr_scale"]
    if direction is None:
        return declared.with_lr(rate)
    return replace(declared, direction="gradient", momentum=None, lr=rate)


def _check_factored(weight: UnitaryWeight, group: dict[str, Any]) -> None:
    if group["direction"] == "rmsprop" and weight.is_factored:
        raise ValueError(
            f'expected a direction without a matrix for the factored gradient of {weight.name!r}, got "rmsprop"; take '
            'gradient="dense", or the direction of its rule'
        )


def _check(group: dict[str, Any]) -> None:
    """Refuses options out of range, and makes integers floats."""
    if group["direction"] not in DIRECTIONS:
        raise ValueError(f"expected direction to be one of {DIRECTIONS}, got {group['direction']!r}")
    for name in ("lr", "unitary_lr_scale", "eps", "weight_decay"):
        if not 0 <= group[name] <= sys.float_info.max:
            raise ValueError(f"expected {name} >= 0 and finite, got {group[name]}")
        if isinstance(group[name], int):  # beyond 64 bits torch takes floats alone
            group[name] = float(group[name])
    for name in ("momentum", "alpha"):
        if not 0 <= group[name] < 1:
            raise ValueError(f"expected {name} in [0, 1), got {group[name]}")


def register_with_timm() -> None:
    """Makes ``timm.optim.create_optimizer_v2(model, "projunn")`` work; a second call does nothing."""
    if "projunn" not in default_registry.list_optimizers():
        does = "projUNN's rank-k updates for unitary weights, RMSprop for all others"
        info = OptimInfo(name="projunn", opt_class=ProjUNN, description=does, has_eps=True, has_momentum=True)
        default_registry.register(info)

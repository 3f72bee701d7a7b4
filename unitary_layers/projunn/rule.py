"""The rule of an update: direction, variant, sampler, rank and rate. The only place where the rate is applied."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..linalg import LowRank
from .direction import Turn, automatic_rank, spectral_rotation, turning
from .gradient import GradientOperator
from .noise import Streams, seed_of
from .rotation import VARIANTS, rotation
from .sampling import SAMPLERS

CHOICES = {
    "variant": VARIANTS,
    "sampler": SAMPLERS,
    "nonfinite": ("raise", "skip"),
    "off_manifold": ("retract", "raise"),
    "direction": ("spectral", "gradient"),
}
INTEGERS = {"rank": (1, "auto"), "seed": (0, 0), "retract_every": (0, None)}  # the least, and what else may stand there

Key = tuple[int, int]  # index of a weight in its model, number of its steps so far


# Note [One length for all layers]
# The length of a spectral step is an angle, and a good angle depends on how often a weight acts, one use after another,
# more than on the task: T turns add up to T times the angle where they agree, and to sqrt(T) times where they do not.
# Best lengths, by the T of a task: 0.23 (T = 1), 0.5 (4), 0.12 (16), 0.02 and 0.005 (30), 0.025 and 0.027 (64), 0.008
# (120). So a step without a length of its own has 0.25 / sqrt(T), and the slope test does the rest; kernels want more.

SPECTRAL_LENGTH = 0.25  # radians, Frobenius, of a step of a weight that acts once
GRADIENT_RATE = 1e-3
GRADIENT_RANK = 1
MOMENTUM = 0.9


class Fit(NamedTuple):
    """What suits the weights of a layer where their rule leaves it open.

    Attributes:
        length: of a spectral step; see Note [One length for all layers].
        share: the automatic rank is n / share.
    """

    length: float = SPECTRAL_LENGTH
    share: int = 16


@dataclass(frozen=True)
class UpdateRule:
    """How a unitary weight moves: in which direction, how far, and by which rank-k update.

    The spectral direction, the default, turns all planes of a sample of the momentum by the same angle; its ``lr`` is
    the Frobenius length of a step in radians, so the scale of the loss does not matter; see Note [The spectral
    direction]. The direction of the paper, "gradient", takes ``W`` to the unitary matrix that projUNN finds for
    ``W - lr G_k``.

    A rule is a value: immutable, hashable, comparable. ``dataclasses.replace(rule, lr=...)`` makes another.

    Args:
        variant: "D" (nearest unitary matrix to ``W - lr G_k``) or "T" (geodesic step along the tangent part of it). In
            the spectral direction "T" turns by theta and "D" by atan(theta).
        rank: k, the rank of a sample, at most n, the smaller side of a weight; "auto" for n / 16 (recurrent layers
            n / 4, orthonormal kernels n / 2), but from 8 to 32 (``direction="gradient"``: 1).
        sampler: how the sample is found: "lsi", "column", "power" or "svd".
        lr: in the spectral direction the Frobenius length of a step in radians: theta times the root of the number of
            directions that turn, in general 2 k. In the direction of the paper the factor of the gradient. None for
            what suits the layer; see Note [One length for all layers] (``direction="gradient"``: 1e-3).
        seed: first part of the key of the sampler's random numbers.
        retract_every: steps between two repairs of the rounding drift; 0 for never, None for max(1000, n), n the
            larger side, which costs less than a tenth of the steps.
        nonfinite: what to do with a gradient that has a NaN or an infinity: "raise" an error, or "skip" the weight.
        off_manifold: what to do with a weight that something else has written so that it is not unitary: "retract" it
            with a warning, or "raise" an error; see Note [Off the manifold].
        direction: "spectral" or "gradient".
        momentum: of the spectral direction: how much is left of what was sampled. None for 0.9 where an optimiser
            keeps the state of the step, and none otherwise; see Note [Where the momentum lives].

    Raises:
        ValueError: for a value out of range, or options that belong to the other direction.

    Source: Kiani et al., arXiv 2203.05483, algorithm 1, for ``direction="gradient"``.

    Example:
        >>> UpdateRule("D", rank=4, lr=0.1).variant
        'D'
    """

    variant: str = "T"
    rank: int | str = "auto"
    sampler: str = "lsi"
    lr: float | None = None
    seed: int = 0
    retract_every: int | None = None
    nonfinite: str = "raise"
    off_manifold: str = "retract"
    direction: str = "spectral"
    momentum: float | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in tuple(choices):
                raise ValueError(f"expected {name} to be one of {tuple(choices)}, got {getattr(self, name)!r}")
        for name, (least, other) in INTEGERS.items():
            value = getattr(self, name)
            is_integer = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not is_integer and (value != other or type(value) is not type(other)):
                beside = "" if name == "seed" else f" or {other!r}"
                raise ValueError(f"expected {name} to be an integer of at least {least}{beside}, got {value!r}")
        if self.momentum is not None and not (_is_number(self.momentum) and 0 <= self.momentum < 1):
            raise ValueError(f"expected momentum in [0, 1), got {self.momentum!r}")
        if self.lr is not None and not (_is_number(self.lr) and 0 <= self.lr <= sys.float_info.max):
            raise ValueError(f"expected lr to be a finite number of at least 0, got {self.lr!r}")
        if self.momentum is not None and not self.is_spectral:
            raise ValueError('expected direction="spectral" with a momentum, got "gradient"')

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Refuses a pickled rule whose gradient was preconditioned, which no rule does any more."""
        if state.pop("precondition", False):
            raise ValueError('expected a rule without precondition=True, which is gone; take direction="spectral"')
        state.pop("alpha", None)
        self.__dict__.update(state)

    @property
    def is_spectral(self) -> bool:
        """Whether the direction is the spectral one."""
        return self.direction == "spectral"

    @property
    def rate(self) -> float:
        """``lr``, or the default of the direction where it is None."""
        return (SPECTRAL_LENGTH if self.is_spectral else GRADIENT_RATE) if self.lr is None else float(self.lr)

    def rank_of(self, n: int) -> int:
        """The rank for a weight whose smaller side is n."""
        if isinstance(self.rank, int):
            return min(self.rank, n)
        return automatic_rank(n) if self.is_spectral else GRADIENT_RANK

    def suited(self, n: int, fit: Fit) -> "UpdateRule":
        """The rule for a weight whose smaller side is n, with what suits its layer where the rule leaves it open."""
        if not self.is_spectral or (self.lr is not None and self.rank != "auto"):
            return self
        rank = automatic_rank(n, fit.share) if self.rank == "auto" else self.rank
        return _suited(self, fit.length if self.lr is None else self.lr, rank)

    def with_lr(self, lr: float) -> "UpdateRule":
        """The same rule at another learning rate."""
        return self if lr == self.lr else _with_lr(self, lr)

    def retract_period(self, n: int) -> int:
        """Steps between two retractions of a weight whose larger side is n; 0 for never."""
        # A retraction is two products of n x n matrices, a step moves some 6 n^2 numbers; see Note [The cost of a
        # retraction]. examples/drift.py measures both, and the drift.
        return max(1000, n) if self.retract_every is None else self.retract_every

    def streams(self, keys: Sequence[Key], device: torch.device, stream: int = 0) -> Streams:
        """The random numbers of one step: a function of (seed, index of the weight, step count) and nothing else.

        Args:
            keys: index of the weight and its step count, or those of each weight along the first dimension.
            device: where they are drawn.
            stream: for several independent draws in a step.
        """
        return Streams(tuple(seed_of(self.seed, *key, stream) for key in keys), device)

    def sample(
        self,
        gradient: GradientOperator,
        keys: Sequence[Key],
        weight: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> LowRank:
        """The matrix of rank k that stands for a gradient, in the spectral direction for its tangent part.

        Args:
            gradient: as an operator ``(..., m, n)``; with the momentum in it, if there is one.
            keys: of the weight, or of each along the first dimension, as for :meth:`streams`.
            weight: unitary ``(..., m, n)``; only the spectral direction looks at it.
            previous: left factor ``(..., m, k)`` of the step before; only the power sampler looks at it.

        Raises:
            ValueError: for a rule of the spectral direction and no weight.
        """
        device, rank = gradient.device, self.rank_of(min(gradient.shape[-2:]))
        sampler, streams = SAMPLERS[self.sampler], self.streams(keys, device)
        if self.is_spectral:
            if weight is None:
                raise ValueError('expected the weight for a rule with direction="spectral", got None')
            gradient = turning(gradient, weight)
        return sampler(gradient, rank, streams, previous)

    def turn(self, weight: Tensor, sample: LowRank, factor: Tensor | None = None) -> Turn:
        """The step of a unitary weight in the spectral direction, of ``factor`` ``(...)`` times its length."""
        return spectral_rotation(weight, sample, self.variant, self.rate if factor is None else self.rate * factor)

    def change(self, weight: Tensor, sample: LowRank) -> LowRank:
        """The change ``(..., m, n)`` of a unitary weight for a sampled gradient, not yet written."""
        if self.is_spectral:
            return self.turn(weight, sample).change
        return rotation(weight, sample.scale(-self.rate), self.variant)

    def forgotten(self, used: LowRank) -> LowRank:
        """What a step takes out of the momentum of which it used this part, to be added to it."""
        return used.scale((MOMENTUM if self.momentum is None else self.momentum) - 1)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


@lru_cache(maxsize=1024)  # a schedule asks for the same change of many equal rules
def _suited(rule: UpdateRule, lr: float, rank: int | str) -> UpdateRule:
    return replace(rule, lr=lr, rank=rank)


@lru_cache(maxsize=1024)
def _with_lr(rule: UpdateRule, lr: float) -> UpdateRule:
    return replace(rule, lr=lr)

"""The rule of an update: which variant, sampler, rank and learning rate. The only place where the rate is applied."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg import LowRank
from .gradient import GradientOperator
from .moments import Moments, PreconditionedGradient, Probes, limited
from .noise import Streams
from .rotation import VARIANTS, rotation
from .sampling import SAMPLERS

NONFINITE = ("raise", "skip")
OFF = ("retract", "raise")

Key = tuple[int, int]  # index of a weight in its model, number of its steps so far


class Sample(NamedTuple):
    """What a rule has seen of a gradient.

    Attributes:
        low_rank: the matrix of rank k that stands for it.
        probes: what its moments are estimated from; None without ``precondition``.
    """

    low_rank: LowRank
    probes: Probes | None


@dataclass(frozen=True)
class UpdateRule:
    """How a unitary weight moves: ``W`` goes to the unitary matrix that projUNN finds for ``W - lr G_k``.

    A rule is a value: immutable, hashable, comparable, without state. ``dataclasses.replace(rule, lr=...)`` makes
    another.

    Args:
        variant: "D" (nearest unitary matrix to ``W - lr G_k``) or "T" (geodesic step along the tangent part of it).
        rank: k, the rank of the sampled gradient ``G_k``.
        sampler: how ``G_k`` is found: "lsi", "column", "power" or "svd".
        lr: learning rate, dimensionless: the factor of the gradient, not a step length.
        seed: first part of the key of the sampler's random numbers.
        retract_every: steps between two repairs of the rounding drift; 0 for never, None for max(1000, n), which costs
            less than a tenth of the steps.
        nonfinite: what to do with a gradient that has a NaN or an infinity: "raise" an error, or "skip" the weight.
        off_manifold: what to do with a weight that something else has written so that it is not unitary: "retract" it
            with a warning, or "raise" an error; see Note [Off the manifold].
        precondition: whether to divide the gradient by the root of the second moments of its rows and columns, RMSprop
            with a state of 2n numbers; see Note [Preconditioning without a matrix]. lr is then near a step length: no
            step is longer than ``2 lr sqrt(n k)``, in Frobenius norm.
        alpha: factor of the old average of the moments.

    Raises:
        ValueError: for a value out of range.

    Source: Kiani et al., arXiv 2203.05483, algorithm 1.

    Example:
        >>> UpdateRule("D", rank=4, lr=0.01).variant
        'D'
    """

    variant: str = "T"
    rank: int = 1
    sampler: str = "lsi"
    lr: float = 1e-3
    seed: int = 0
    retract_every: int | None = None
    nonfinite: str = "raise"
    off_manifold: str = "retract"
    precondition: bool = False
    alpha: float = 0.99

    def __post_init__(self) -> None:
        for name, choices in (
            ("variant", VARIANTS),
            ("sampler", SAMPLERS),
            ("nonfinite", NONFINITE),
            ("off_manifold", OFF),
        ):
            if getattr(self, name) not in tuple(choices):
                raise ValueError(f"expected {name} to be one of {tuple(choices)}, got {getattr(self, name)!r}")
        for name, least in (("rank", 1), ("seed", 0), ("retract_every", 0)):
            value = getattr(self, name)
            if value is None and name == "retract_every":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"expected {name} to be an integer of at least {least}, got {value!r}")
        if not isinstance(self.alpha, (int, float)) or not 0 <= self.alpha < 1:
            raise ValueError(f"expected alpha in [0, 1), got {self.alpha!r}")
        if not isinstance(self.precondition, bool):
            raise ValueError(f"expected precondition to be True or False, got {self.precondition!r}")
        if not isinstance(self.lr, (int, float)) or not 0 <= self.lr <= sys.float_info.max:
            raise ValueError(f"expected lr to be a finite number of at least 0, got {self.lr!r}")

    def with_lr(self, lr: float) -> "UpdateRule":
        """The same rule at another learning rate."""
        return self if lr == self.lr else _with_lr(self, lr)

    def retract_period(self, n: int) -> int:
        """Steps between two retractions of an n x n weight; 0 for never."""
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
        seeds = [_mix(count, _start(self.seed, index)) for index, count in keys]
        return Streams(tuple(_mix(stream, seed) for seed in seeds) if stream else tuple(seeds), device)

    def sample(
        self,
        gradient: GradientOperator,
        keys: Sequence[Key],
        previous: Tensor | None = None,
        moments: Moments | None = None,
        probes: Probes | None = None,
    ) -> Sample:
        """The matrix of rank k that stands for a gradient, preconditioned if the rule says so.

        Args:
            gradient: as an operator ``(..., n, n)``.
            keys: of the weight, or of each along the first dimension, as for :meth:`streams`.
            previous: left factor ``(..., n, k)`` of the step before; only the power sampler looks at it.
            moments: running average before this step, for a rule with ``precondition``.
            probes: of the other parts of a gradient that comes in parts.

        Raises:
            ValueError: for a rule with ``precondition`` and no moments.
        """
        device = gradient.device
        sampler, streams = SAMPLERS[self.sampler], self.streams(keys, device)
        if not self.precondition:
            return Sample(sampler(gradient, self.rank, streams, previous), None)
        if moments is None:
            raise ValueError("expected the moments of the weight for a rule with precondition=True, got None")
        source = self.streams(keys, device, stream=1)
        scaled = PreconditionedGradient(gradient, moments, self.alpha, source, probes)
        return Sample(sampler(scaled, self.rank, streams, previous), scaled.probes())

    def averaged(self, moments: Moments, probes: Probes) -> Moments:
        """The running average of the moments after a gradient that was seen through these probes."""
        return moments.averaged(probes.moments(), self.alpha)

    def change(self, weight: Tensor, sample: LowRank) -> LowRank:
        """The change ``(..., n, n)`` of a unitary weight for a sampled gradient, not yet written."""
        if self.precondition:
            sample = limited(sample)
        return rotation(weight, sample.scale(-float(self.lr)), self.variant)


@lru_cache(maxsize=1024)  # a schedule asks for the same change of many equal rules
def _with_lr(rule: UpdateRule, lr: float) -> UpdateRule:
    return replace(rule, lr=lr)


# Note [Random numbers by key]
# Ranks of a distributed run must draw the same numbers without talking, and a resumed run must go on with the next ones
# without a saved generator. So each draw has a key, (seed, index of the weight in its model, number of its steps so
# far), and a generator is seeded with a hash of it. The hash matters: the CPU generator looks at 32 bits of its seed,
# and consecutive seeds must not give related streams.


def _mix(part: int, state: int = 0) -> int:
    """A 64-bit hash of an integer and a hash, by the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    mask = (1 << 64) - 1
    state = (state + part + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


@lru_cache(maxsize=4096)  # of a weight, the same at each step
def _start(seed: int, index: int) -> int:
    return _mix(index, _mix(seed))

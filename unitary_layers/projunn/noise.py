"""Random numbers for one weight or for a stack of them, each from a stream of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .gradient import GradientOperator


@dataclass(frozen=True)
class Streams:
    """Where the random numbers of some weights start.

    Attributes:
        seeds: one for a tensor as a whole; several for the entries of its first dimension.
        device: where the numbers are drawn.
    """

    seeds: tuple[int, ...]
    device: torch.device


Source = torch.Generator | Streams | None


def noise(draw: Callable[..., Tensor], shape: Sequence[int], like: Tensor | GradientOperator, source: Source) -> Tensor:
    """Random numbers of the dtype and on the device of ``like``, drawn where the source is.

    Args:
        draw: ``Tensor.uniform_`` or ``Tensor.normal_``.
        shape: of the result, row-major.
        like: has the dtype and the device.
        source: torch's default generator if None. Of streams, an entry of a stack is what it would be alone.
    """
    device = like.device if source is None else source.device
    result = torch.empty(tuple(shape), dtype=like.dtype, device=device)
    if not isinstance(source, Streams):
        return draw(result, generator=source).to(like.device)
    generator = torch.Generator(device)  # seeded anew for each: that is cheaper than a new one
    for seed, entry in zip(source.seeds, result.unbind() if len(source.seeds) > 1 else (result,), strict=True):
        draw(entry, generator=generator.manual_seed(seed))
    return result.to(like.device)


# Note [Random numbers by key]
# Ranks of a distributed run must draw the same numbers without talking, and a resumed run must go on with the next ones
# without a saved generator. So each draw has a key, (seed, index of the weight in its model, number of its steps so
# far), and a generator is seeded with a hash of it. The hash matters: the CPU generator looks at 32 bits of its seed,
# and consecutive seeds must not give related streams.


def seed_of(seed: int, index: int, count: int, stream: int = 0) -> int:
    """The seed of a draw by its key, and by its number ``stream`` where a step draws several times."""
    mixed = _mix(count, _start(seed, index))
    return _mix(stream, mixed) if stream else mixed


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

"""Random numbers for one weight or for a stack of them, each from a stream of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

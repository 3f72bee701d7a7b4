"""Batches of sequences of different lengths, padded at their ends: turned round, and moved to end together."""

import torch
from torch import Tensor


def turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence of ``(b, t, features)`` from its end to its start, the padding where it is.

    Args:
        x: padded at the ends.
        lengths: ``(b,)``, or None where all have t steps.
    """
    if lengths is None:
        return x.flip(1)
    time, lengths = torch.arange(x.size(1), device=x.device), lengths.to(x.device)[:, None]
    places = torch.where(time < lengths, lengths - 1 - time, time)
    return x.gather(1, places[..., None].expand_as(x))


def ended_together(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The same sequences, padded at their starts."""
    return x if lengths is None else turned(x, lengths).flip(1)


def without_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Zeros in the place of what stands after the ends."""
    if lengths is None:
        return x
    time = torch.arange(x.size(1), device=x.device)
    return x * (time < lengths.to(x.device)[:, None]).to(x.dtype)[..., None]

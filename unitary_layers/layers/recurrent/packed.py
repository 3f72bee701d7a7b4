"""The rows of a packed sequence: which belong to a time step, and where the states before them are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...training.factored.collect import Parts


def sizes_of(lengths: Tensor | int, batch: int) -> list[int]:
    """How many of a batch of sequences are alive at each time step; see :func:`scan`."""
    return lengths.tolist() if isinstance(lengths, Tensor) else [batch] * lengths


def alive_of(h: Tensor, alive: int, h_0: Tensor, ended: list[Tensor]) -> Tensor:
    """The states of those sequences that are alive at the next step, of those at this one."""
    if alive < h.size(0):  # forwards, the shortest sequences end
        ended.append(h[alive:])
        return h[:alive]
    if alive > h.size(0):  # backwards, they begin
        return torch.cat([h, h_0[h.size(0) : alive]])
    return h


def states_before(output: Tensor, h_0: Tensor, sizes: Sequence[int], reverse: bool) -> Parts:
    """The state before each row of a packed sequence: rows, and the states ``(len(rows), n)`` that belong to them."""
    batch = sizes[0]
    if sizes[-1] == batch:  # a padded batch: the states before are the states, one time step on
        first, rest = (slice(-batch, None), slice(None, -batch)) if reverse else (slice(batch), slice(batch, None))
        return [(first, h_0), (rest, output[batch:] if reverse else output[: len(output) - batch])]
    rows = _rows_before(sizes, reverse, output.device)
    return [(slice(None), torch.cat([h_0, output]).index_select(0, rows))]


def _rows_before(batch_sizes: Sequence[int], reverse: bool, device: torch.device) -> Tensor:
    """For each row of a packed sequence, the row of ``cat([h_0, output])`` that holds the state before it."""
    sizes = torch.tensor(batch_sizes)
    batch, starts = int(sizes[0]), sizes.cumsum(0) - sizes
    time = torch.arange(len(sizes)).repeat_interleave(sizes)
    sequence = torch.arange(len(time)) - starts[time]
    other = time + (1 if reverse else -1)
    inside = (other >= 0) & (other < len(sizes))
    other = other.clamp(0, len(sizes) - 1)
    inside &= sequence < sizes[other]
    return torch.where(inside, batch + starts[other] + sequence, sequence).to(device)

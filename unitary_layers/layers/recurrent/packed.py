"""The rows of a packed sequence: which belong to a time step, and where the states before them are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...training.factored.collect import Parts


def sizes_of(lengths: Tensor | int, batch: int) -> list[int]:
    """How many of a batch of sequences are alive at each time step; see :func:`scan`."""
    return lengths.tolist() if isinstance(lengths, Tensor) else [batch] * lengths


def sizes_in_graph(batch_sizes: Tensor | None, rows: Tensor, h_0: Tensor) -> list[int]:
    """:func:`sizes_of` in a graph, which holds no number of time steps: it is that of the rows, and one of none."""
    batch = h_0.size(0)
    return sizes_of(max(len(rows) // max(batch, 1), 1) if batch_sizes is None else batch_sizes, batch)


def reordered(h: Tensor, order: Tensor | None) -> Tensor:
    """A state ``(layers, batch, n)`` with its batch in the order of a packed sequence, or back in the user's.

    Raises:
        RuntimeError: for a state of another batch.
    """
    if order is None:
        return h
    if h.dim() != 3 or h.size(1) != len(order):
        raise RuntimeError(f"Expected hidden size (layers, {len(order)}, n), got {tuple(h.shape)}")
    return h.index_select(1, order)


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


def by_age(x: Tensor, lengths: Tensor | int, batch: int, reverse: bool) -> Tensor:
    """Inputs by how many steps before the end they are read, ``(batch, steps * features)``.

    Args:
        x: rows of a packed sequence ``(rows, features)``.
        lengths: as for :func:`scan`.
        batch: sequences. Where one is shorter than the longest, zeros stand for what it has not.
        reverse: whether the first time step is read last.
    """
    steps, features = len(lengths) if isinstance(lengths, Tensor) else lengths, x.size(-1)
    if isinstance(lengths, Tensor):
        time, sequence = _places(lengths)
        age = time if reverse else torch.bincount(sequence)[sequence] - 1 - time
        x = x.new_zeros(steps * batch, features).index_copy(0, (age * batch + sequence).to(x.device), x)
        reverse = True
    aged = x.view(steps, batch, features)
    return (aged if reverse else aged.flip(0)).transpose(0, 1).reshape(batch, steps * features)


def _places(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The time step and the sequence of each row."""
    starts, time = sizes.cumsum(0) - sizes, torch.arange(len(sizes)).repeat_interleave(sizes)
    return time, torch.arange(len(time)) - starts[time]


def _rows_before(batch_sizes: Sequence[int], reverse: bool, device: torch.device) -> Tensor:
    """For each row of a packed sequence, the row of ``cat([h_0, output])`` that holds the state before it."""
    sizes = torch.tensor(batch_sizes)
    batch, starts = int(sizes[0]), sizes.cumsum(0) - sizes
    time, sequence = _places(sizes)
    other = time + (1 if reverse else -1)
    inside = (other >= 0) & (other < len(sizes))
    other = other.clamp(0, len(sizes) - 1)
    inside &= sequence < sizes[other]
    return torch.where(inside, batch + starts[other] + sequence, sequence).to(device)

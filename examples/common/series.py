"""Series of several channels in the .ts format of the UEA archive, and what is left of one whose steps are dropped."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor


def read_series(path: Path) -> tuple[list[Tensor], Tensor]:
    """The series `(time, channels)` of a file, of any lengths, and their labels, by the order of the file's header."""
    header, _, body = path.read_text().partition("@data\n")
    names = next(line.split()[2:] for line in header.splitlines() if line.startswith("@classLabel"))
    fields = [line.split(":") for line in body.split()]
    series = [torch.tensor([[float(v) for v in row.split(",")] for row in parts[:-1]]).T for parts in fields]
    return series, torch.tensor([names.index(parts[-1]) for parts in fields])


def where_to_get(path: Path) -> str:
    """What to say of a file of the archive that is not there."""
    return (
        f"{path} is not there. It is in the wheel of the package aeon, below aeon/datasets/data: `pip download "
        "--no-deps aeon`, then unzip it."
    )


def thinned(series: Tensor, share: float, generator: Generator) -> Tensor:
    """A series with its times in `[0, 1]` before its channels, of which a share of the steps is dropped at random."""
    times = torch.linspace(0, 1, len(series)).unsqueeze(1)
    kept = max(round((1 - share) * len(series)), 2)
    rows = torch.randperm(len(series), generator=generator)[:kept].sort().values
    return torch.cat([times, series], 1)[rows]

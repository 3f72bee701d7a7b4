"""Tables of results as CSV: a row a run, whole on disk or not at all, so that a command can go on where it stopped."""

from __future__ import annotations

import csv
import os
import statistics
from pathlib import Path

Row = dict[str, str]


def read_table(path: Path) -> list[Row]:
    """The rows of a table, none of one that is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: list[Row]) -> None:
    """A table in the place of what was there."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


def matching(rows: list[Row], wanted: Row) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if row | wanted == row]


def mean_of(rows: list[Row], column: str) -> float:
    """Mean of a column, NaN of none."""
    return statistics.fmean(float(row[column]) for row in rows) if rows else float("nan")

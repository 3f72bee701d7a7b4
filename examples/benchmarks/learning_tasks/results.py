"""The table of runs: a CSV that grows by a row a run, and what it says of each contender."""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        task, contender, rate, seed, steps: which one.
        loss: of training, mean over the last sixth of the steps; infinite if it diverged.
        metric: of the task, on its test data.
        seconds: of the processor, for training.
        error: the largest `|W^H W - I|_F` at the end.
    """

    task: str
    contender: str
    rate: float
    seed: int
    steps: int
    loss: float
    metric: float
    seconds: float
    error: float


KINDS = {"seed": int, "steps": int, "task": str, "contender": str}  # all others are floats


class Table:
    """The rows of a CSV file, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [Row(**{k: KINDS.get(k, float)(v) for k, v in r.items()}) for r in csv.DictReader(file)]

    def has(self, task: str, contender: str, rate: float, seed: int, steps: int) -> bool:
        """Whether a run is there."""
        wanted = (task, contender, seed, steps)
        found = [r for r in self.rows if (r.task, r.contender, r.seed, r.steps) == wanted]
        return any(math.isclose(r.rate, rate, rel_tol=1e-4) for r in found)

    def append(self, row: Row) -> None:
        """Adds a row, to the file as well."""
        self.rows.append(row)
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            _writer(file, is_new).writerow(_shown(row))

    def forget(self, tasks: Iterable[str], contenders: Iterable[str]) -> None:
        """Drops the rows of contenders in tasks."""
        self.rows = [r for r in self.rows if r.task not in tasks or r.contender not in contenders]
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            _writer(file, True).writerows(map(_shown, self.rows))
        os.replace(part, self.path)


def _writer(file: object, is_new: bool) -> csv.DictWriter:
    writer = csv.DictWriter(file, [field.name for field in fields(Row)])
    if is_new:
        writer.writeheader()
    return writer


def _shown(row: Row) -> dict[str, object]:
    return {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in asdict(row).items()}


class Standing(NamedTuple):
    """A contender in a task at its best rate.

    Attributes:
        rate: the best one of the first seed.
        is_edge: whether it is the smallest or largest of several.
        seeds: how many; those that all contenders of the task have.
        loss, metric, seconds: means over these.
    """

    rate: float
    is_edge: bool
    seeds: int
    loss: float
    metric: float
    seconds: float


def best_rate(rows: list[Row]) -> float:
    """The rate of the least loss."""
    return min(rows, key=lambda row: row.loss).rate


def standings(rows: list[Row]) -> dict[str, dict[str, Standing]]:
    """By task and contender."""
    tasks = {task: [row for row in rows if row.task == task] for task in dict.fromkeys(row.task for row in rows)}
    return {task: _standings(of_task) for task, of_task in tasks.items()}


def _standings(rows: list[Row]) -> dict[str, Standing]:
    """Of one task."""
    by_name = {
        name: [row for row in rows if row.contender == name] for name in dict.fromkeys(r.contender for r in rows)
    }
    first = {name: [row for row in own if row.seed == own[0].seed] for name, own in by_name.items()}
    best = {name: best_rate(own) for name, own in first.items()}
    runs = {name: {row.seed: row for row in own if row.rate == best[name]} for name, own in by_name.items()}
    seeds = set.intersection(*map(set, runs.values()))
    found = {}
    for name, by_seed in runs.items():
        shared = [by_seed[seed] for seed in (seeds or by_seed)]
        means = (statistics.fmean(getattr(row, field) for row in shared) for field in ("loss", "metric", "seconds"))
        rates = sorted(row.rate for row in first[name])
        is_edge = len(rates) > 1 and best[name] in (rates[0], rates[-1])
        found[name] = Standing(best[name], is_edge, len(shared), *means)
    return found

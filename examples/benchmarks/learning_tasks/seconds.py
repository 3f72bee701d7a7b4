"""As many steps for each contender as it takes in the seconds of the default rule."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping

import torch
from common.tasks import generator_for

from .contenders import CONTENDERS
from .results import Row, Standing
from .task import Task

ROUNDS = 7  # and one to warm up
STEPS = 6  # in a round


def paces(task: Task, rates: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the processor that a step of each contender takes: the median over rounds in which all take turns."""
    learners, seconds = {}, {name: [] for name in rates}
    for name, rate in rates.items():
        torch.manual_seed(0)
        learners[name] = CONTENDERS[name].make(task, rate)
    for round_ in range(ROUNDS + 1):
        for name, learner in learners.items():
            started = time.process_time()
            for step in range(STEPS):
                learner.learn(task, generator_for(round_, step))
            seconds[name].append((time.process_time() - started) / STEPS)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def equal_steps(task: Task, found: Mapping[str, Standing], names: Iterable[str]) -> dict[str, int]:
    """The steps that contenders take in the time of the default rule, each at its best rate."""
    seconds = paces(task, {name: found[name].rate for name in ("ours", *names)})
    return {name: max(1, round(task.steps * seconds["ours"] / seconds[name])) for name in names}


def steps_there(rows: Iterable[Row], task: str) -> dict[str, int]:
    """The steps of contenders in a table of runs of equal seconds, which go on with them."""
    return {row.contender: row.steps for row in rows if row.task == task}

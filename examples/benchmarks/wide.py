"""Seconds to a loss for a wide weight: the default rule beside `torch.nn.utils.parametrizations.orthogonal` (Cayley).

Fashion-MNIST by one hidden weight of 2048 x 2048, of which torch's parametrisation solves a linear system at each step.
It trains for `--steps` steps with a cosine schedule, at the best of several rates, chosen in `--trial` steps. The
default rule, whose rate is constant, then trains until the mean of its last losses, as many as make a sixth of these
steps, is as low. Seconds are those of the processor, without the start. The losses go into wide.csv, and a run that is
there is not repeated; the ratio and a picture follow.

    python examples/benchmarks/wide.py --root data
    python examples/benchmarks/wide.py --quick
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.tasks import generator_for
from learning_tasks import images
from learning_tasks.contenders import CONTENDERS, cosine
from learning_tasks.task import Task

PEER, OURS = "parametrizations", "ours"
QUICK = {"width": 64, "steps": 12, "trial": 3, "rates": [1e-3, 1e-2]}


class Point(NamedTuple):
    """A step: the run (who, at which rate, of how many steps), which step it is, its loss, and the seconds so far."""

    contender: str
    rate: float
    steps: int
    step: int
    loss: float
    seconds: float


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="wide.py", description=__doc__.partition("\n")[0])
    options.add_argument("--width", type=int, default=2048)
    options.add_argument("--steps", type=int, default=200, help="of the parametrisation; the default rule gets twice")
    options.add_argument("--trial", type=int, default=40, help="steps that choose a rate")
    options.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3, 1e-2], help="to choose from")
    options.add_argument("--quick", action="store_true", help="small, on scikit-learn's digits")
    options.add_argument("--threads", type=int, default=1, help="CPU threads")
    options.add_argument("--root", type=Path, default=Path("data"), help="folder of the data set")
    options.add_argument("--out", type=Path, default=Path("runs/wide"), help="CSV and PNG go here")
    options.add_argument("--draw", type=Path, metavar="CSV", help="ratio and picture of this file; trains nothing")
    return options


def train(task: Task, contender: str, rate: float, until: float = -math.inf) -> Iterator[Point]:
    """The steps of a run: of a peer along a cosine, ours at a constant rate until it has met a loss."""
    torch.manual_seed(0)
    learner = CONTENDERS[contender].make(task, rate)
    factor = (lambda _step: 1.0) if contender == OURS else (lambda step: cosine(step, task.steps))
    schedules = [LambdaLR(optimizer, factor) for optimizer in learner.optimizers]
    seconds, points = 0.0, []
    for step in tqdm(range(task.steps), desc=f"{contender} {rate:.3g}", leave=False):
        started = time.process_time()
        loss = learner.learn(task, generator_for(0, step))
        for schedule in schedules:
            schedule.step()
        seconds += time.process_time() - started
        points.append(Point(contender, rate, task.steps, step, loss, seconds))
        yield points[-1]
        if reached(points, until, task.steps):
            return


def reached(points: list[Point], loss: float, steps: int) -> bool:
    """Whether the mean of the last losses is at most this one; ours gets twice the steps of the peer it follows."""
    last = math.ceil(steps / 12)
    return len(points) >= last and statistics.fmean(p.loss for p in points[-last:]) <= loss


def final(points: list[Point]) -> float:
    """The mean loss of the last sixth of a run."""
    return statistics.fmean(p.loss for p in points[-math.ceil(points[-1].steps / 6) :])


class Runs:
    """The runs of a CSV file, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path, self.points = path, []
        if path.exists():
            with path.open(newline="") as file:
                for r in csv.DictReader(file):
                    numbers = (float(r["rate"]), int(r["steps"]), int(r["step"]), float(r["loss"]), float(r["seconds"]))
                    self.points.append(Point(r["contender"], *numbers))

    def of(self, contender: str, rate: float, steps: int) -> list[Point]:
        """The points of a run, none if it is not there."""
        return [p for p in self.points if (p.contender, p.rate, p.steps) == (contender, rate, steps)]

    def run(self, task: Task, contender: str, rate: float, until: float = -math.inf) -> list[Point]:
        """The points of a run, which is trained if it is not there."""
        if found := self.of(contender, rate, task.steps):
            return found
        points = list(train(task, contender, rate, until))
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([Point._fields] if is_new else [])
            writer.writerows(
                [p.contender, p.rate, p.steps, p.step, f"{p.loss:.5g}", f"{p.seconds:.4f}"] for p in points
            )
        self.points += points
        return points


def main(argv: list[str] | None = None) -> float:
    args = parser().parse_args(argv)
    if args.draw is not None:
        return summary(Runs(args.draw))
    for name, value in (QUICK if args.quick else {}).items():
        setattr(args, name, value)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    runs = Runs(args.out / "wide.csv")

    def task(steps: int) -> Task:
        return images.wide(args.root, steps, args.width, is_small=args.quick)

    trials = {rate: final(runs.run(task(args.trial), PEER, rate)) for rate in tqdm(args.rates, desc="rates")}
    rate = min(trials, key=trials.__getitem__)
    goal = final(runs.run(task(args.steps), PEER, rate))
    runs.run(task(2 * args.steps), OURS, 1.0, until=goal)
    return summary(runs)


def summary(runs: Runs) -> float:
    """Prints what came out, draws it beside the CSV, and returns the ratio of the seconds, infinite if not met."""
    ours = [p for p in runs.points if p.contender == OURS]
    steps = ours[-1].steps // 2
    peer = [p for p in runs.points if p.contender == PEER and p.steps == steps]
    goal = final(peer)
    ratio = ours[-1].seconds / peer[-1].seconds if reached(ours, goal * (1 + 1e-4), ours[-1].steps) else math.inf
    print(
        f"{PEER}, rate {peer[-1].rate:g}: loss {goal:.4f} after {len(peer)} steps, {peer[-1].seconds:.1f} s\n"
        f"{OURS}: {len(ours)} steps, {ours[-1].seconds:.1f} s; ratio {ratio:.3f}"
    )
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for points, label in ((peer, f"{PEER} with AdamW"), (ours, "default rule")):
        means = [statistics.fmean(p.loss for p in points[max(0, i - 9) : i + 1]) for i in range(len(points))]
        axes.plot([p.seconds for p in points], means, label=label)
    axes.axhline(goal, color="0.7", linewidth=0.8)
    axes.set(xscale="log", xlabel="seconds of the processor", ylabel="training loss, mean of ten steps")
    axes.legend()
    figure.savefig(runs.path.with_suffix(".png"), dpi=90)
    return ratio


if __name__ == "__main__":
    main()

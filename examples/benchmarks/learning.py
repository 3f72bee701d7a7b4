"""Does the default rule learn? Short tasks on which it stands beside what else keeps weights orthogonal.

Contenders differ in how they move the unitary weights, and in nothing else: start, batches, schedule (a cosine to zero)
and AdamW for all other parameters are the same. The default of this package is taken as it comes; of a peer the best of
its rates on the first seed is taken: five, and up to two more where the best is at their end. A row is appended to
learning.csv after each run, so that the same command goes on where it stopped; the tables follow at the end. Data is
read from below `--root`: FashionMNIST and CIFAR-10, which torchvision downloads; tasks whose data is missing are left
out with a message. With `--equal-seconds` the peers then train anew, at their best rates, for as many steps as they
take in the seconds of the default rule; these rows go into learning_seconds.csv.

    python examples/benchmarks/learning.py --tasks mlp --contenders frozen parametrizations ours
    python examples/benchmarks/learning.py --quick --tasks deep pixels
    python examples/benchmarks/learning.py --equal-seconds
    python examples/benchmarks/learning.py --draw results/learning.csv
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.tasks import generator_for
from learning_tasks import TASKS
from learning_tasks.contenders import CONTENDERS, PEERS, available, cosine
from learning_tasks.drawing import draw
from learning_tasks.results import Row, Table, best_rate, standings
from learning_tasks.seconds import equal_steps, steps_there
from learning_tasks.task import Missing, Task
from learning_tasks.verdicts import report, report_seconds

QUICK_STEPS = 6
FURTHER = 2  # rates beyond those given, where the best one is at their end


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="learning.py", description=__doc__.partition("\n")[0])
    options.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    options.add_argument("--contenders", nargs="+", choices=tuple(CONTENDERS), default=available())
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one chooses the rates")
    options.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one seed and one rate")
    options.add_argument("--equal-seconds", action="store_true", help="then give peers the seconds of the default rule")
    options.add_argument("--again", action="store_true", help="forget the rows of these tasks and contenders first")
    options.add_argument("--threads", type=int, default=1, help="CPU threads")
    options.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets")
    options.add_argument("--out", type=Path, default=Path("runs/learning"), help="CSV, PNG and tables go here")
    options.add_argument("--draw", type=Path, metavar="CSV", help="tables and picture of this file; trains nothing")
    return options


def train(name: str, task: Task, contender: str, rate: float, seed: int) -> Row:
    """One run."""
    torch.manual_seed(seed)
    learner = CONTENDERS[contender].make(task, rate)
    schedules = [LambdaLR(o, lambda step: cosine(step, task.steps)) for o in learner.optimizers]
    losses: list[float] = []
    started = time.process_time()  # of the processor, which a machine that is shared disturbs less
    for step in tqdm(range(task.steps), desc=f"{name}, {contender} {rate:.3g}, seed {seed}", leave=False):
        losses.append(learner.learn(task, generator_for(seed, step)))
        if not math.isfinite(losses[-1]):
            return Row(name, contender, rate, seed, task.steps, math.inf, math.nan, math.nan, math.nan)
        for schedule in schedules:
            schedule.step()
    seconds = time.process_time() - started
    learner.model.eval()
    with torch.no_grad():
        metric = task.test(learner)
    last = statistics.fmean(losses[-math.ceil(task.steps / 6) :])
    return Row(name, contender, rate, seed, task.steps, last, metric, seconds, learner.error())


def compete(name: str, task: Task, contender: str, seeds: list[int], rates: tuple[float, ...], table: Table) -> None:
    """The runs of a contender: all rates with the first seed, the best one with the others; those there are skipped.

    Where the best rate is the least or the largest, up to two further ones are tried.
    """

    def run(rate: float, seed: int) -> None:
        if not table.has(name, contender, rate, seed, task.steps):
            table.append(train(name, task, contender, rate, seed))

    def best() -> float:
        first = [r for r in table.rows if (r.task, r.contender, r.seed) == (name, contender, seeds[0])]
        return best_rate([r for r in first if any(math.isclose(r.rate, rate, rel_tol=1e-4) for rate in tried)])

    tried = sorted(rates)
    for rate in rates:
        run(rate, seeds[0])
    for _ in range(FURTHER if len(rates) > 1 else 0):
        if math.isclose(best(), tried[0], rel_tol=1e-4):
            tried.insert(0, tried[0] ** 2 / tried[1])
            run(tried[0], seeds[0])
        elif math.isclose(best(), tried[-1], rel_tol=1e-4):
            tried.append(tried[-1] ** 2 / tried[-2])
            run(tried[-1], seeds[0])
    rate = best()
    for seed in seeds[1:]:
        run(rate, seed)


def compete_for_seconds(name: str, task: Task, seeds: list[int], table: Table, timed: Table) -> None:
    """The runs of the peers, at their best rates, for as long as the default rule takes; those there are skipped."""
    found = standings(table.rows).get(name, {})
    names = [peer for peer in PEERS if peer in found and "ours" in found]
    steps = steps_there(timed.rows, name)
    if missing := [peer for peer in names if peer not in steps]:
        steps |= equal_steps(task, found, missing)
    for peer in names:
        longer = replace(task, steps=steps[peer])
        for seed in seeds:
            if not timed.has(name, peer, found[peer].rate, seed, longer.steps):
                timed.append(train(name, longer, peer, found[peer].rate, seed))


def main(argv: list[str] | None = None) -> list[Row]:
    args = parser().parse_args(argv)
    if args.draw is not None:
        return summary(Table(args.draw))
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    table = Table(args.out / "learning.csv")
    if args.again:
        table.forget(args.tasks, args.contenders)
    timed = Table(timed_path(table.path)) if args.equal_seconds else None
    seeds = args.seeds[:1] if args.quick else args.seeds
    for name in (bar := tqdm(args.tasks)):
        bar.set_description(name)
        try:
            task = TASKS[name](args.root, **({"steps": QUICK_STEPS} if args.quick else {}))
        except Missing as missing:
            bar.write(f"{name} is left out: {missing}")
            continue
        for contender in args.contenders:
            rates = CONTENDERS[contender].recurrent_rates if task.recurrent else CONTENDERS[contender].rates
            rates = rates[len(rates) // 2 :][:1] if args.quick else rates
            if rates:
                compete(name, task, contender, seeds, rates, table)
        if timed is not None:
            compete_for_seconds(name, task, seeds, table, timed)
    return summary(table)


def timed_path(path: Path) -> Path:
    """Where the runs of equal seconds are, beside the table of those of equal steps."""
    return path.with_name(f"{path.stem}_seconds.csv")


def summary(table: Table) -> list[Row]:
    """Prints the tables, writes them and the picture beside the CSV, and returns the rows."""
    text = report(table.rows)
    if timed := Table(timed_path(table.path)).rows:
        text += "\n\n" + report_seconds(table.rows, timed)
    print(text)
    table.path.with_suffix(".md").write_text(text + "\n")
    draw(table.rows, table.path.with_suffix(".png"))
    return table.rows


if __name__ == "__main__":
    main()

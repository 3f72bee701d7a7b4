"""What is left of a series when its steps are dropped: an LSTM alone, and one with the development of its states.

Path development (Lou, Li, Ni, arXiv 2204.00740) turns the path of an LSTM's states into unitary matrices, features that
do not depend on the path's speed. Japanese vowels (nine speakers, 12 channels, 7 to 29 steps) and basic motions (four
activities, 6 channels, 100 steps), of which 0, 30, 50 and 70 % of the steps are dropped at random, in training and in
test. Each series has its times as one more channel. Every network that has been trained is tested at all four shares.

    python examples/irregular_series.py --quick
    python examples/irregular_series.py --root data --out runs/irregular_series
    python examples/irregular_series.py --draw results/irregular_series.csv

`--root` holds the folders JapaneseVowels and BasicMotions. `--out` gets irregular_series.csv, a row for each test, and
irregular_series.png; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from common.drawing import Curve, add_legend, draw_curves
from common.series import read_series, thinned, where_to_get
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from unitary_layers import UnitaryDevelopment, attach, unitarity_error_of, unitary_weights

SHARES = (0.0, 0.3, 0.5, 0.7)
FIELDS = (
    "series",
    "network",
    "rate",
    "seed",
    "steps",
    "dropped",
    "tested",
    "accuracy",
    "parameters",
    "error",
    "seconds",
)
Data = tuple[list[Tensor], Tensor]


class Network(NamedTuple):
    """A kind of network.

    Attributes:
        width: states of the LSTM.
        size: rows of the matrices of the development; 0 for none.
        rate: of AdamW, the best of 1e-3, 3e-3 and 1e-2.
    """

    width: int
    size: int
    rate: float


NETWORKS = {"lstm": Network(32, 0, 1e-2), "lstm + development": Network(20, 10, 1e-2)}


class Reader(nn.Module):
    """Reads a packed series by an LSTM, and classifies it by the last state, or by the development of all states."""

    def __init__(self, network: Network, channels: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, network.width)
        self.development = UnitaryDevelopment(network.width, network.size) if network.size else None
        self.head = nn.Linear(network.size**2 if network.size else network.width, classes)

    def forward(self, series: PackedSequence) -> Tensor:
        states, (last, _) = self.lstm(series)
        return self.head(last[0] if self.development is None else self.development(states).flatten(1))


def load(root: Path, name: str) -> tuple[Data, Data, int]:
    """Training and test data of one archive, with channels of mean 0 and deviation 1, and the number of classes."""
    paths = [root / name / f"{name}_{part}.ts" for part in ("TRAIN", "TEST")]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(where_to_get(path))
    (x, y), (x_test, y_test) = map(read_series, paths)
    every = torch.cat(x)
    x, x_test = ([(a - every.mean(0)) / every.std(0) for a in part] for part in (x, x_test))
    return (x, y), (x_test, y_test), int(y.max()) + 1


def dropped(data: Data, share: float, seed: int) -> Data:
    """The data without this share of each series' steps; a point of zeros comes first, where every path begins."""
    generator = torch.Generator().manual_seed(seed)
    return [F.pad(thinned(a, share, generator), (0, 0, 1, 0)) for a in data[0]], data[1]


def train(model: nn.Module, data: Data, rate: float, seed: int, steps: int) -> None:
    """AdamW, a cosine, batches of 32; the unitary weights by the rule of the layer."""
    x, y = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    if any(True for _ in unitary_weights(model)):
        attach(model, optimizer)
    scheduler = CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randperm(len(x), generator=generator)[:32]
        loss = F.cross_entropy(model(pack_sequence([x[i] for i in index.tolist()], False)), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Share of a data set that is classified rightly, in %."""
    return 100 * (model(pack_sequence(data[0], False)).argmax(-1) == data[1]).float().mean().item()


def rows_of(root: Path, name: str, kind: str, rate: float, seed: int, share: float, steps: int) -> Iterator[dict]:
    """Trains one network; a row for each share of dropped steps in the test."""
    data, test, classes = load(root, name)
    torch.manual_seed(seed)
    model = Reader(NETWORKS[kind], data[0][0].size(1) + 1, classes)
    start = time.process_time()
    train(model, dropped(data, share, seed), rate, seed, steps)
    seconds = time.process_time() - start
    has_unitary = any(True for _ in unitary_weights(model))
    for tested in SHARES:
        yield {
            **{"series": name, "network": kind, "rate": f"{rate:g}", "seed": str(seed), "steps": str(steps)},
            **{"dropped": f"{share:g}", "tested": f"{tested:g}"},
            "accuracy": f"{accuracy(model.eval(), dropped(test, tested, 1000 + seed)):.2f}",
            "parameters": str(sum(p.numel() for p in model.parameters())),
            "error": f"{float(unitarity_error_of(model)):.1e}" if has_unitary else "",
            "seconds": f"{seconds:.3g}",
        }


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table, none of one that is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """A table as CSV, whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def mean(rows: list[dict[str, str]], **wanted: str) -> tuple[float, float]:
    """Mean and standard deviation of the accuracy over seeds."""
    found = [float(row["accuracy"]) for row in rows if all(row[k] == v for k, v in wanted.items())]
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0


def curves(rows: list[dict[str, str]], name: str, whole: bool) -> Iterator[Curve]:
    """A curve a network: tested as it was trained, or trained on whole series."""
    for kind in dict.fromkeys(row["network"] for row in rows):
        shares = sorted({row["tested"] for row in rows if row["series"] == name}, key=float)
        trained = {share: "0" if whole else share for share in shares}
        own = {"series": name, "network": kind}
        done = [s for s in shares if any(r | own | {"dropped": trained[s], "tested": s} == r for r in rows)]
        points = [(100 * float(s), mean(rows, **own, dropped=trained[s], tested=s)[0]) for s in done]
        yield Curve(kind, points)


def draw(path: Path) -> None:
    """PNG beside a table: accuracy against the share of dropped steps."""
    rows = read(path)
    names = list(dict.fromkeys(row["series"] for row in rows))
    figure = Figure(figsize=(10, 3.5 * len(names)), layout="constrained")
    for line, name in zip(figure.subplots(len(names), 2, squeeze=False), names, strict=True):
        for axes, whole in zip(line, (False, True), strict=True):
            draw_curves(axes, list(curves(rows, name, whole)))
            how = "trained on whole series" if whole else "dropped in training too"
            axes.set(xlabel="steps dropped, %", ylabel="test accuracy, %", title=f"{name}, {how}")
            add_legend(axes)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def table(rows: list[dict[str, str]]) -> Iterator[str]:
    """A line for each series and network: accuracy at each share, dropped in training too, and in test alone."""
    yield f"| series | network | {' | '.join(f'{100 * s:g} %' for s in SHARES)} | in test alone |"
    yield f"|{'---|' * (len(SHARES) + 3)}"
    for name, kind in dict.fromkeys((row["series"], row["network"]) for row in rows):
        both = [{**c._asdict()}["points"] for w in (False, True) for c in curves(rows, name, w) if c.label == kind]
        same, alone = (" | ".join(f"{y:.1f}" for _, y in points) for points in both)
        yield f"| {name} | {kind} | {same} | {alone.replace(' | ', ', ')} |"


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="irregular_series.py", description=__doc__.partition("\n")[0])
    add = options.add_argument
    add("--series", nargs="+", default=["JapaneseVowels", "BasicMotions"], help="folders of the archive in --root")
    add("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    add("--rates", nargs="+", type=float, default=None, help="learning rates; the best of each network if not given")
    add("--shares", nargs="+", type=float, default=list(SHARES), help="of the steps that are dropped in training")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--steps", type=int, default=400)
    add("--threads", type=int, default=1)
    add("--root", type=Path, default=Path("data"), help="folder of the data")
    add("--out", type=Path, default=Path("runs/irregular_series"), help="folder of the results")
    add("--quick", action="store_true", help="one seed, one share, four steps")
    add("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and train nothing")
    args = options.parse_args(argv)
    if args.draw is not None:
        return draw(args.draw)
    if args.quick:
        args.seeds, args.shares, args.steps = [0], [0.5], 4
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "irregular_series.csv"
    rows = read(path)
    cases = [
        (name, kind, rate, seed, share, args.steps)
        for name in args.series
        for seed in args.seeds
        for share in args.shares
        for kind in args.networks
        for rate in (args.rates or [NETWORKS[kind].rate])
    ]
    for case in tqdm(cases):
        keys = dict(zip(("series", "network", "rate", "seed", "dropped", "steps"), map("{}".format, case), strict=True))
        keys |= {"rate": f"{case[2]:g}", "dropped": f"{case[4]:g}"}
        if not any(row | keys == row for row in rows):
            rows += rows_of(args.root, *case)
            write(path, rows)
    draw(path)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

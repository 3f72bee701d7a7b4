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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from common.drawing import Curve, add_legend, draw_curves
from common.series import read_series, thinned, where_to_get
from common.table import Row, matching, mean_of, read_table, write_table
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from unitary_layers import UnitaryDevelopment, attach, unitarity_error_of

SHARES = (0.0, 0.3, 0.5, 0.7)
Data = tuple[list[Tensor], Tensor]


class Network(NamedTuple):
    """A kind of network.

    Attributes:
        width: states of the LSTM.
        size: rows of the matrices of the development; 0 for none.
        rates: of AdamW, the best ones by series; 1e-2 for others.
    """

    width: int
    size: int
    rates: dict[str, float]


NETWORKS = {"lstm": Network(32, 0, {"JapaneseVowels": 3e-2}), "lstm + development": Network(20, 10, {})}


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


def train(model: Reader, data: Data, rate: float, seed: int, steps: int) -> None:
    """AdamW, a cosine, batches of 32; the unitary weights by the rule of the layer."""
    x, y = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    if model.development is not None:
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


def keys_of(name: str, kind: str, rate: float, seed: int, share: float, steps: int) -> Row:
    """What tells one run from another."""
    values = (name, kind, f"{rate:g}", str(seed), str(steps), f"{share:g}")
    return dict(zip(("series", "network", "rate", "seed", "steps", "dropped"), values, strict=True))


def rows_of(root: Path, name: str, kind: str, rate: float, seed: int, share: float, steps: int) -> Iterator[Row]:
    """Trains one network; a row for each share of dropped steps in the test."""
    data, test, classes = load(root, name)
    torch.manual_seed(seed)
    model = Reader(NETWORKS[kind], data[0][0].size(1) + 1, classes)
    start = time.process_time()
    train(model, dropped(data, share, seed), rate, seed, steps)
    seconds = time.process_time() - start
    for tested in SHARES:
        yield keys_of(name, kind, rate, seed, share, steps) | {
            "tested": f"{tested:g}",
            "accuracy": f"{accuracy(model.eval(), dropped(test, tested, 1000 + seed)):.2f}",
            "parameters": str(sum(p.numel() for p in model.parameters())),
            "error": f"{float(unitarity_error_of(model)):.1e}" if NETWORKS[kind].size else "",
            "seconds": f"{seconds:.3g}",
        }


def curves(rows: list[Row], name: str, whole: bool) -> Iterator[Curve]:
    """A curve a network: dropped in training as in the test, or trained on whole series."""
    for kind in dict.fromkeys(row["network"] for row in rows):
        points = []
        for share in map("{:g}".format, SHARES):
            wanted = {"series": name, "network": kind, "dropped": "0" if whole else share, "tested": share}
            points.append((100 * float(share), mean_of(matching(rows, wanted), "accuracy")))
        yield Curve(kind, points)


def draw(path: Path) -> None:
    """PNG beside a table: accuracy against the share of dropped steps."""
    rows = read_table(path)
    names = list(dict.fromkeys(row["series"] for row in rows))
    figure = Figure(figsize=(10, 3.5 * len(names)), layout="constrained")
    for line, name in zip(figure.subplots(len(names), 2, squeeze=False), names, strict=True):
        for axes, whole in zip(line, (False, True), strict=True):
            draw_curves(axes, list(curves(rows, name, whole)))
            how = "trained on whole series" if whole else "dropped in training too"
            axes.set(xlabel="steps dropped, %", ylabel="test accuracy, %", title=f"{name}, {how}")
            add_legend(axes)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def table(rows: list[Row]) -> Iterator[str]:
    """A line for each series and network: accuracy at each share, dropped in training too, and in the test alone."""
    yield f"| series | network | {' | '.join(f'{100 * s:g} %' for s in SHARES)} | in the test alone |"
    yield f"|{'---|' * (len(SHARES) + 3)}"
    for name, kind in dict.fromkeys((row["series"], row["network"]) for row in rows):
        found = [curve for whole in (False, True) for curve in curves(rows, name, whole) if curve.label == kind]
        same, alone = ([f"{accuracy:.1f}" for _, accuracy in curve.points] for curve in found)
        yield f"| {name} | {kind} | {' | '.join(same)} | {', '.join(alone)} |"


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="irregular_series.py", description=__doc__.partition("\n")[0])
    add = options.add_argument
    add("--series", nargs="+", default=["JapaneseVowels", "BasicMotions"], help="folders of the archive in --root")
    add("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    add("--rates", nargs="+", type=float, default=None, help="learning rates; those of NETWORKS if not given")
    add("--shares", nargs="+", type=float, default=list(SHARES), help="of the steps that are dropped in training")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--steps", type=int, default=200)
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
    rows = read_table(path)
    cases = [
        (name, kind, rate, seed, share, args.steps)
        for name in args.series
        for seed in args.seeds
        for share in args.shares
        for kind in args.networks
        for rate in (args.rates or [NETWORKS[kind].rates.get(name, 1e-2)])
    ]
    for case in tqdm(cases):
        if not matching(rows, keys_of(*case)):
            rows += rows_of(args.root, *case)
            write_table(path, rows)
    draw(path)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

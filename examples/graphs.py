"""How deep can a network on a graph be? Minesweeper with 2 to 64 layers, of unitary and of ordinary convolutions.

Which cells of a 100 x 100 minefield hold a mine, from some of the numbers of mines beside them (Platonov et al., ICLR
2023, arXiv 2302.11640). "unitary" is a chain of `UnitaryGraphConv` and GroupSort, without skips and norms; "gcn" the
same chain of graph convolutions as Kipf and Welling have them, with ReLU (arXiv 1609.02907); "gcn, residual" adds each
to what comes in, behind a layer norm, and so does "unitary, residual". Seed s takes split s of the ten of the graph.

    python examples/graphs.py --quick
    python examples/graphs.py --root data --resume
    python examples/graphs.py --draw results/graphs.csv

`--root` holds minesweeper.npz; `--quick` draws a small field of its own. `--out` gets graphs.csv, a row a network,
graphs.png, and a folder a network, from which `--resume` goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common.drawing import Curve, add_legend, draw_curves
from common.log import describe
from common.options import number, parsed
from common.resumable import ResumableRun
from common.table import Row, matching, mean_of, read_table, write_table
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from unitary_layers import GroupSort, UnitaryGraphConv, attach, unitarity_error_of
from unitary_layers.linalg import Adjacency, normalized_adjacency

NETWORKS = ("unitary", "unitary, residual", "gcn", "gcn, residual")
QUICK = {"depths": [2, 4], "seeds": [0], "rates": [1e-2], "steps": 6, "width": 8, "log_every": 3}


class Field(NamedTuple):
    """A graph of cells: its adjacency, features and labels of the cells, and which of them train, validate and test."""

    graph: Adjacency
    x: Tensor
    y: Tensor
    masks: dict[str, Tensor]


class GraphConv(nn.Linear):
    """``A X W^T + b``, the graph convolution of Kipf and Welling, with the matrix A of the unitary one."""

    def forward(self, x: Tensor, graph: Adjacency) -> Tensor:
        return Mean.apply(graph.matrix, F.linear(x, self.weight)) + self.bias


class Mean(torch.autograd.Function):
    """The product of a sparse symmetric matrix and features."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix @ grad


class Network(nn.Module):
    """A linear map of each cell's features, layers of convolutions, and a linear read-out of each cell."""

    def __init__(self, kind: str, depth: int, width: int, features: int, options: dict[str, Any]) -> None:
        super().__init__()
        unitary, self.is_residual = kind.startswith("unitary"), kind.endswith("residual")
        layer = (lambda: UnitaryGraphConv(width, width, **options)) if unitary else lambda: GraphConv(width, width)
        self.embed, self.head = nn.Linear(features, width), nn.Linear(width, 2)
        self.layers = nn.ModuleList(layer() for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth if self.is_residual else 0))
        self.act = GroupSort(dim=-1) if unitary else nn.ReLU()

    def forward(self, x: Tensor, graph: Adjacency) -> Tensor:
        x = self.embed(x)
        for i, layer in enumerate(self.layers):
            y = self.act(layer(self.norms[i](x) if self.is_residual else x, graph))
            x = x + y if self.is_residual else y
        return self.head(x)


def cells_beside(side: int) -> Tensor:
    """The edges of a square field of cells, each with its eight neighbours, in both directions."""
    cells = torch.arange(side * side).view(side, side)
    pairs = [(cells[:, 1:], cells[:, :-1]), (cells[1:], cells[:-1])]
    pairs += [(cells[1:, 1:], cells[:-1, :-1]), (cells[1:, :-1], cells[:-1, 1:])]
    one_way = torch.cat([torch.stack([a.flatten(), b.flatten()]) for a, b in pairs], dim=1)
    return torch.cat([one_way, one_way.flip(0)], dim=1)


def drawn_field(seed: int, side: int = 20) -> Field:
    """A small field of the same rules: a fifth of the cells are mines, and half of the numbers are told."""
    generator = torch.Generator().manual_seed(seed)
    mines, told = (torch.rand(side * side, generator=generator) < share for share in (0.2, 0.5))
    edges = cells_beside(side)
    beside = torch.zeros(side * side).index_add(0, edges[0], mines[edges[1]].float()).long().clamp(max=5)
    x = torch.cat([F.one_hot(beside, 6) * told.unsqueeze(-1), ~told.unsqueeze(-1)], dim=1).float()
    part = torch.rand(side * side, generator=generator)
    masks = {"train": part < 0.5, "val": (part >= 0.5) & (part < 0.75), "test": part >= 0.75}
    return Field(normalized_adjacency(edges, num_nodes=len(x)), x, mines.long(), masks)


def load(root: Path, seed: int) -> Field:
    """The published field with one of its ten splits."""
    path = root / "minesweeper.npz"
    if not path.exists():
        where = "https://github.com/yandex-research/heterophilous-graphs, in data/"
        raise FileNotFoundError(f"{path} is not there. It is in {where}.")
    with np.load(path) as found:
        x, y, edges = (torch.from_numpy(found[name]) for name in ("node_features", "node_labels", "edges"))
        masks = {name: torch.from_numpy(found[f"{name}_masks"][seed % 10]) for name in ("train", "val", "test")}
    edges = edges.long().T
    return Field(normalized_adjacency(torch.cat([edges, edges.flip(0)], dim=1), num_nodes=len(x)), x, y, masks)


class Run(ResumableRun):
    """The training of one network on the whole graph."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.field = drawn_field(args.seed) if args.quick else load(args.root, args.seed)
        torch.manual_seed(args.seed)
        options = {"time": args.time, "learn_time": True, "tol": args.tol}
        self.model = Network(args.network, args.depth, args.width, self.field.x.size(1), options)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.lr)
        if args.network.startswith("unitary"):
            attach(self.model, self.optimizer)
        self.scheduler = CosineAnnealingLR(self.optimizer, args.steps)
        self.best: tuple[float, float] = (0.0, 0.0)  # ROC AUC in %, of validation and, at the same step, of test
        self.open({"title": "minesweeper"})

    def config(self) -> dict[str, Any]:
        return self.options_but("root", "log_every")

    def state(self) -> dict[str, Any]:
        return super().state() | {"best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.best = tuple(state["best"])

    def run(self) -> None:
        """Train to the last step."""
        x, y, graph, train = self.field.x, self.field.y, self.field.graph, self.field.masks["train"]
        bar = tqdm(initial=self.step, total=self.args.steps, desc=self.args.out.name, disable=not sys.stderr.isatty())
        with bar:
            while self.step < self.args.steps:
                start = time.process_time()
                loss = F.cross_entropy(self.model(x, graph)[train], y[train])
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                self.step, self.seconds = self.step + 1, self.seconds + time.process_time() - start
                bar.update()
                if self.step % self.args.log_every == 0 or self.step == self.args.steps:
                    area = self.evaluate()
                    self.log.append({"step": self.step, "loss": loss.item(), "test_accuracy": area["test"] / 100})
                    print(f"{self.args.out.name} {describe(self.log.rows[-1])}", flush=True)
                    self.save()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """ROC AUC in % of validation and test; keeps the best."""
        scores = self.model.eval()(self.field.x, self.field.graph).softmax(-1)[:, 1]
        self.model.train()
        masks = self.field.masks
        area = {name: 100 * roc_auc_score(self.field.y[masks[name]], scores[masks[name]]) for name in ("val", "test")}
        self.best = max(self.best, (area["val"], area["test"]))
        return area

    def keys(self) -> Row:
        """What tells one run from another."""
        return {name: str(getattr(self.args, name)) for name in ("network", "depth", "width", "seed", "steps", "lr")}

    def row(self) -> Row:
        """The row of the table."""
        error = f"{float(unitarity_error_of(self.model)):.1e}" if self.args.network.startswith("unitary") else ""
        return self.keys() | {
            "validation": f"{self.best[0]:.2f}",
            "test": f"{self.best[1]:.2f}",
            "error": error,
            "seconds": f"{self.seconds:.3g}",
        }


def at_best_rate(rows: list[Row], network: str, depth: int) -> list[Row]:
    """The rows of a network, a seed each, at the rate that is best in validation."""
    found = matching(rows, {"network": network, "depth": str(depth)})
    rates = [matching(found, {"lr": rate}) for rate in dict.fromkeys(row["lr"] for row in found)]
    return max(rates, key=lambda of: mean_of(of, "validation"), default=[])


def draw(path: Path) -> None:
    """PNG beside a table: ROC AUC against depth."""
    rows = read_table(path)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    depths = sorted({int(row["depth"]) for row in rows})
    curves = []
    for network in dict.fromkeys(row["network"] for row in rows):
        points = [(depth, mean_of(at_best_rate(rows, network, depth), "test")) for depth in depths]
        curves.append(Curve(network, points))
    draw_curves(axes, curves)
    axes.set(xscale="log", xlabel="layers", ylabel="test ROC AUC, %", title="minesweeper")
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    add_legend(axes)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="graphs.py", description=__doc__.partition("\n")[0])
    add = options.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--depths", nargs="+", type=int, default=[2, 8, 32, 64])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--width", type=int, default=32)
    add("--steps", type=int, default=100)
    add("--rates", nargs="+", type=number, default=[1e-2, 3e-2], help="highest rates of AdamW")
    add("--time", type=float, default=1.0, help="at which the times of the unitary layers start")
    add("--tol", type=float, default=1e-3, help="largest error of an exponential")
    add("--threads", type=int, default=1)
    add("--log-every", type=int, default=20, help="steps between tests and checkpoints")
    add("--root", type=Path, default=Path("data"), help="folder of minesweeper.npz")
    add("--out", type=Path, default=Path("runs/graphs"), help="folder of the results")
    add("--resume", action="store_true", help="go on with the runs in --out")
    add("--overwrite", action="store_true", help="replace the runs in --out")
    add("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and train nothing")
    options.set_defaults(device="cpu")
    return options


def runs_of(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each network."""
    found = []
    for seed in args.seeds:
        for depth in args.depths:
            for network, lr in product(args.networks, args.rates):
                out = args.out / f"{network.replace(', ', '_')}_{depth}_{lr:g}_{seed}"
                given = vars(args) | {"seed": seed, "depth": depth, "network": network, "lr": lr, "out": out}
                found.append(argparse.Namespace(**{k: v for k, v in given.items() if k not in LISTS}))
    return found


LISTS = ("networks", "depths", "seeds", "rates", "draw")


def main(argv: list[str] | None = None) -> None:
    args = parsed(parser(), argv, QUICK)
    if args.draw is not None:
        return draw(args.draw)
    torch.set_num_threads(args.threads)
    rows: list[Row] = read_table(args.out / "graphs.csv") if args.resume else []
    for given in runs_of(args):
        run = Run(given)
        run.run()
        rows = [row for row in rows if row not in matching(rows, run.keys())] + [run.row()]
        write_table(args.out / "graphs.csv", rows)
        draw(args.out / "graphs.csv")
    for row in rows:
        print(", ".join(row.values()), flush=True)


if __name__ == "__main__":
    main()

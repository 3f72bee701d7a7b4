"""How deep can a network on a group be? The distance of two elements of a dihedral group, by 8 to 32 layers.

Two of the 2n symmetries of a polygon with n corners are marked, and the network is to tell how many turns by a corner
and reflections lead from one to the other, at most n / 2 + 1 (B. Kiani, L. Fesser, M. Weber, NeurIPS 2024, arXiv
2410.05499). An element hears only of its neighbours in one layer, so that fewer than n / 4 layers
cannot tell the largest distances apart. "unitary" is a chain of `UnitaryGroupConv` and GroupSort; "ordinary" the same
chain of convolutions with a free matrix for each move and ReLU, started as He et al. do (arXiv 1502.01852); "ordinary,
residual" adds each of them to what comes in.

    python examples/group_distance.py --quick
    python examples/group_distance.py
    python examples/group_distance.py --draw results/group_distance.csv

`--out` gets group_distance.csv, a row a network, and group_distance.png. What the table has is not run again.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import torch
from common.drawing import Curve, add_legend, draw_curves
from common.options import number, parsed
from common.table import Row, matching, mean_of, read_table, write_table
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from unitary_layers import GroupSort, UnitaryGroupConv, UpdateRule, attach, unitarity_error_of
from unitary_layers.linalg import dihedral_moves

NETWORKS = ("unitary", "ordinary", "ordinary, residual")
QUICK = {"corners": 8, "depths": [2, 4], "seeds": [0], "rates": [1e-2], "steps": 20, "width": 8}


class OrdinaryGroupConv(nn.Module):
    """A convolution with a free matrix for staying and for each move; arguments as of :class:`UnitaryGroupConv`."""

    def __init__(self, in_channels: int, out_channels: int, moves: Tensor) -> None:
        super().__init__()
        self.register_buffer("moves", moves, persistent=False)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels * (1 + len(moves))))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ torch.cat([x, *(x[..., move] for move in self.moves)], 1) + self.bias


class Network(nn.Module):
    """Convolutions, each with an activation, the mean over the group, and two layers that read it."""

    def __init__(self, kind: str, depth: int, width: int, moves: Tensor, length: float | None = None) -> None:
        super().__init__()
        unitary, self.is_residual = kind == "unitary", kind.endswith("residual")
        conv = (
            partial(UnitaryGroupConv, init="identity", update=UpdateRule(lr=length)) if unitary else OrdinaryGroupConv
        )
        self.embed = conv(1, width, moves)
        self.layers = nn.ModuleList(conv(width, width, moves) for _ in range(depth))
        self.act = GroupSort() if unitary else nn.ReLU()
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.embed(x))
        for layer in self.layers:
            y = self.act(layer(x))
            x = x + y if self.is_residual else y
        return self.head(x.mean(2)).squeeze(1)


def draw_pairs(count: int, corners: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Signals ``(count, 1, 2 corners)`` of mean square 1 with two marks, and the distances of these ``(count,)``."""
    first = torch.randint(2 * corners, (count,), generator=generator)
    change = torch.randint(1, 2 * corners, (count,), generator=generator)  # any element but the neutral one
    turn, mirrors = change % corners, change // corners
    a, e = first % corners, first // corners
    second = (a + torch.where(e == 1, -turn, turn)) % corners + corners * ((e + mirrors) % 2)  # g r^turn s^mirrors
    x = torch.zeros(count, 2 * corners).scatter(1, torch.stack([first, second], 1), corners**0.5)
    return x.unsqueeze(1), torch.minimum(turn, corners - turn).float() + mirrors


def train(args: argparse.Namespace, network: str, depth: int, seed: int, lr: float) -> tuple[nn.Module, float]:
    """A network, and its mean absolute error on pairs drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    x, distance = draw_pairs(args.pairs, args.corners, generator)
    test_x, test_distance = draw_pairs(1000, args.corners, generator)
    torch.manual_seed(seed)
    model = Network(network, depth, args.width, dihedral_moves(args.corners), args.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    if network == "unitary":
        attach(model, optimizer)
    scheduler = CosineAnnealingLR(optimizer, args.steps)
    name = f"{network}, {depth} layers, seed {seed}, rate {lr:g}"
    for _ in tqdm(range(args.steps), desc=name, disable=not sys.stderr.isatty()):
        batch = torch.randint(len(x), (args.batch_size,), generator=generator)
        loss = (model(x[batch]) - distance[batch]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        found = torch.cat([model.eval()(part) for part in test_x.split(100)])
    return model, float((found - test_distance).abs().mean())


def at_best_rate(rows: list[Row], network: str, depth: int) -> list[Row]:
    """The rows of a network, a seed each, at its best rate and length."""
    found = matching(rows, {"network": network, "layers": str(depth)})
    tried = dict.fromkeys((row["lr"], row["length"]) for row in found)
    rates = [matching(found, {"lr": rate, "length": length}) for rate, length in tried]
    return min(rates, key=lambda of: mean_of(of, "error"), default=[])


def draw(path: Path) -> None:
    """PNG beside a table: error against depth."""
    rows = read_table(path)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    depths = sorted({int(row["layers"]) for row in rows})
    curves = []
    for network in dict.fromkeys(row["network"] for row in rows):
        points = [(depth, mean_of(at_best_rate(rows, network, depth), "error")) for depth in depths]
        curves.append(Curve(network, points))
    draw_curves(axes, curves, log=True)
    axes.set(xscale="log", xlabel="layers", ylabel="mean absolute error", title="distance in a dihedral group")
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    add_legend(axes)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="group_distance.py", description=__doc__.partition("\n")[0])
    add = options.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--corners", type=int, default=16, help="of the polygon: half of the size of the group")
    add("--depths", nargs="+", type=int, default=[8, 16, 32])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--rates", nargs="+", type=number, default=[3e-3, 1e-2], help="highest rates of AdamW")
    add("--length", type=number, help="radians of a step of the unitary weights; the layer's own if not given")
    add("--width", type=int, default=32)
    add("--pairs", type=int, default=500, help="to train on")
    add("--steps", type=int, default=600)
    add("--batch-size", type=int, default=32)
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=Path("runs/group_distance"), help="folder of the results")
    add("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and train nothing")
    return options


def main(argv: list[str] | None = None) -> None:
    args = parsed(parser(), argv, QUICK)
    if args.draw is not None:
        return draw(args.draw)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "group_distance.csv"
    rows: list[Row] = read_table(table)
    for seed, depth, network, lr in product(args.seeds, args.depths, args.networks, args.rates):
        length = "" if args.length is None or network != "unitary" else f"{args.length:g}"
        options = {name: str(getattr(args, name)) for name in ("corners", "width", "pairs", "steps", "batch_size")}
        keys = {
            "network": network,
            "layers": str(depth),
            "seed": str(seed),
            "lr": f"{lr:g}",
            "length": length,
            **options,
        }
        if matching(rows, keys):
            continue
        start = time.process_time()
        model, error = train(args, network, depth, seed, lr)
        drift = f"{float(unitarity_error_of(model)):.1e}" if network == "unitary" else ""
        seconds = f"{time.process_time() - start:.3g}"
        rows.append(keys | {"error": f"{error:.4g}", "drift": drift, "seconds": seconds})
        print(", ".join(rows[-1].values()), flush=True)
        write_table(table, rows)
    draw(table)


if __name__ == "__main__":
    main()

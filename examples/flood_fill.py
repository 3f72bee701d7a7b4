"""Flood fill: which pixels can be reached from a marked one, without crossing a wall?

A recurrent cell over images sees the walls and the mark, takes many steps with the same input, and a last layer tells
for each pixel whether it belongs to the region of the mark. The answer travels from pixel to pixel through the
recurrent convolution, as in "Input-driven circuit reconfiguration in critical recurrent neural networks" (Magnasco,
arXiv 2405.15036). `orthogonal` is `OrthogonalConvRNNCell`, `conv` the same cell with `nn.Conv2d` in the place of its
recurrent convolution. Both learn on small drawings with few steps, and are tested on larger ones with more.

    python examples/flood_fill.py --quick
    python examples/flood_fill.py --out runs/flood_fill
    python examples/flood_fill.py --draw results/flood_fill.csv

`--out` gets flood_fill.csv, a row for each test, and flood_fill.png; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from common.drawing import Curve, add_legend, draw_curves
from common.table import Row, matching, mean_of, read_table, write_table
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from unitary_layers import OrthogonalConvRNNCell, attach, unitarity_error_of

RATES = {"orthogonal": 1e-2, "conv": 3e-3}  # of AdamW, the better of 3e-3 and 1e-2
FACTORS = (0.5, 1, 2)  # steps of a test, as multiples of those of training; for a larger side so much larger
SIDES = (1, 2)


def drawings(count: int, side: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Walls and mark `(count, 2, side, side)`, and the region of the mark `(count, 1, side, side)`.

    The walls are a frame and straight lines, one for every 9 pixels, of 2 to side / 2 pixels.
    """
    walls = torch.zeros(count, 1, side, side)
    walls[..., [0, -1], :] = walls[..., [0, -1]] = 1
    for wall in walls[:, 0]:
        for _ in range(side * side // 9):
            row, column, length, flip = torch.randint(2**30, (4,), generator=generator).tolist()
            row, column, length = 1 + row % (side - 2), 1 + column % (side - 2), 2 + length % (side // 2 - 1)
            (wall.T if flip % 2 else wall)[row, column : column + length] = 1
    chance = (1 - walls).flatten(1)
    mark = torch.zeros_like(chance).scatter_(1, torch.multinomial(chance, 1, generator=generator), 1).view_as(walls)
    region, before = mark, torch.zeros_like(mark)
    while not torch.equal(region, before):
        before, beside = region, F.pad(region, (1, 1, 1, 1))
        sides = beside[..., 2:, 1:-1] + beside[..., :-2, 1:-1] + beside[..., 1:-1, 2:] + beside[..., 1:-1, :-2]
        region = ((region + sides) * (1 - walls)).clamp(max=1)
    return torch.cat([walls, mark], 1), region


class Filler(nn.Module):
    """A cell and what reads its state, a number for each pixel."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.cell = OrthogonalConvRNNCell(2, channels, 3, init="dirac")
        if kind == "conv":
            self.cell.conv_hh = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular", bias=False)
        self.head = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 1, 1))

    def forward(self, x: Tensor, steps: int) -> Tensor:
        return self.head(self.cell(x, steps=steps))


def train(model: Filler, rate: float, seed: int, args: argparse.Namespace) -> None:
    """AdamW and a cosine, on drawings that are drawn once."""
    generator = torch.Generator().manual_seed(seed)
    x, region = drawings(args.drawings, args.side, generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    if not isinstance(model.cell.conv_hh, nn.Conv2d):
        attach(model, optimizer)
    scheduler = CosineAnnealingLR(optimizer, args.updates)
    for _ in range(args.updates):
        index = torch.randint(len(x), (args.batch_size,), generator=generator)
        loss = F.binary_cross_entropy_with_logits(model(x[index], args.steps), region[index], weight=1 - x[index, :1])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()


@torch.no_grad()
def accuracy(model: Filler, x: Tensor, region: Tensor, steps: int) -> float:
    """Share of the pixels that are no wall and rightly told, in %."""
    right, free = (model(x, steps) > 0) == (region > 0), x[:, :1] == 0
    return 100 * right[free].float().mean().item()


def keys_of(kind: str, rate: float, seed: int, args: argparse.Namespace) -> Row:
    """What tells one run from another."""
    return {"cell": kind, "rate": f"{rate:g}", "seed": str(seed), "updates": str(args.updates)}


def rows_of(kind: str, rate: float, seed: int, args: argparse.Namespace) -> Iterator[Row]:
    """Trains one cell; a row for each size of drawing and number of steps."""
    torch.manual_seed(seed)
    model = Filler(kind, args.channels)
    start = time.process_time()
    train(model, rate, seed, args)
    seconds = time.process_time() - start
    for factor in SIDES:
        x, region = drawings(args.tested, factor * args.side, torch.Generator().manual_seed(1000 + seed))
        free = x[:, :1] == 0
        alike = 100 * max(region[free].mean().item(), 1 - region[free].mean().item())
        for steps in (int(f * factor * args.steps) for f in FACTORS):
            yield keys_of(kind, rate, seed, args) | {
                **{"side": str(factor * args.side), "steps": str(steps)},
                "accuracy": f"{accuracy(model.eval(), x, region, steps):.2f}",
                "all_alike": f"{alike:.2f}",
                "parameters": str(sum(p.numel() for p in model.parameters())),
                "error": f"{float(unitarity_error_of(model)):.1e}" if kind == "orthogonal" else "",
                "seconds": f"{seconds:.3g}",
            }


def draw(path: Path) -> None:
    """PNG beside a table: accuracy against the number of steps."""
    rows = read_table(path)
    sides = list(dict.fromkeys(row["side"] for row in rows))
    figure = Figure(figsize=(5 * len(sides), 3.5), layout="constrained")
    for axes, side in zip(figure.subplots(1, len(sides), squeeze=False)[0], sides, strict=True):
        curves = []
        for kind in dict.fromkeys(row["cell"] for row in rows):
            own = matching(rows, {"cell": kind, "side": side})
            steps = dict.fromkeys(row["steps"] for row in own)
            curves.append(Curve(kind, [(int(s), mean_of(matching(own, {"steps": s}), "accuracy")) for s in steps]))
        draw_curves(axes, curves)
        alike = mean_of(matching(rows, {"side": side}), "all_alike")
        axes.axhline(alike, linestyle="--", color="grey", label="all pixels alike")
        axes.set(xlabel="steps in the test", ylabel="pixels rightly told, %", title=f"{side} x {side}")
        add_legend(axes)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def table(rows: list[Row]) -> Iterator[str]:
    """A line for each cell and size: mean accuracy over seeds at each number of steps."""
    for kind, side in dict.fromkeys((row["cell"], row["side"]) for row in rows):
        own = matching(rows, {"cell": kind, "side": side})
        steps = dict.fromkeys(row["steps"] for row in own)
        found = [f"{s} steps {mean_of(matching(own, {'steps': s}), 'accuracy'):.1f} %" for s in steps]
        yield f"{kind}, {side} x {side}: {', '.join(found)}"


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="flood_fill.py", description=__doc__.partition("\n")[0])
    add = options.add_argument
    add("--cells", nargs="+", choices=tuple(RATES), default=list(RATES), help="recurrent convolution")
    add("--rates", nargs="+", type=float, default=None, help="learning rates; the best of each cell if not given")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--channels", type=int, default=16, help="of the state")
    add("--side", type=int, default=10, help="pixels of a side in training")
    add("--steps", type=int, default=12, help="of the cell in training")
    add("--updates", type=int, default=3000, help="training steps")
    add("--batch-size", type=int, default=16)
    add("--drawings", type=int, default=1000, help="in training")
    add("--tested", type=int, default=100, help="drawings of a test")
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=Path("runs/flood_fill"), help="folder of the results")
    add("--quick", action="store_true", help="one seed, four updates, few drawings")
    add("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and train nothing")
    args = options.parse_args(argv)
    if args.draw is not None:
        return draw(args.draw)
    if args.quick:
        args.seeds, args.updates, args.drawings, args.tested = [0], 4, 20, 5
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "flood_fill.csv"
    rows = read_table(path)
    cases = [(kind, rate, seed) for seed in args.seeds for kind in args.cells for rate in args.rates or [RATES[kind]]]
    for case in tqdm(cases):
        if not matching(rows, keys_of(*case, args)):
            rows += rows_of(*case, args)
            write_table(path, rows)
    draw(path)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

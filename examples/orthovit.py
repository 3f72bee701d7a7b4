"""How high may the learning rate of a vision transformer be? Orthogonal projections beside ordinary ones.

`orthovit_tiny_projunn` and its twin of `nn.MultiheadAttention` and `nn.Linear`, from scratch on Fashion-MNIST, without
a norm of queries and keys: at the usual rate of AdamW, at three times and at ten times that rate. The twin starts as
timm's transformers do; "orthogonal start" is one that starts as ours and is not constrained afterwards, and "orthogonal
attention" one of `UnitaryMultiheadAttention` and `nn.Linear`. Orthogonal weights move by the default rule of their
layers, whose steps are angles and do not depend on that rate; AdamW moves all others, in all networks alike. Rates rise
over a twentieth of the steps and fall to zero by a cosine. A run whose loss is no number any more ends there.

    python examples/orthovit.py --quick
    python examples/orthovit.py --patch-size 7 --images-used 20000 --epochs 1
    python examples/orthovit.py --draw results/orthovit.csv

`--out` gets orthovit.csv, orthovit.png and a folder a run, from which `--resume` goes on.
"""

from __future__ import annotations

import argparse
import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from common.drawing import Curve, add_legend, draw_curves
from common.images import IMAGE_SETS, load_images
from common.options import number, parsed
from common.ordinary import ordinary_attention, ordinary_linear
from common.pixels import Pixels, PixelsRun
from common.table import read_table, write_table
from matplotlib.figure import Figure
from torch.optim.lr_scheduler import LambdaLR

from unitary_layers import attach, unitarity_error_of, unitary_weights

# name: the layers that are not the model's own
NETWORKS: dict[str, dict[str, Any]] = {
    "orthogonal": {},
    "orthogonal attention": {"linear_layer": ordinary_linear},
    "unconstrained": {"attention_layer": ordinary_attention, "linear_layer": ordinary_linear},
    "orthogonal start": {
        "attention_layer": partial(ordinary_attention, orthogonal=True),
        "linear_layer": partial(ordinary_linear, orthogonal=True),
    },
}
DEFAULT = ["orthogonal", "unconstrained"]
QUICK = {"images": "digits", "epochs": 2, "patch_size": 2, "embed_dim": 32, "depths": [1, 1], "seeds": [0]}


class Run(PixelsRun):
    """The training of one network at one rate."""

    def __init__(self, args: argparse.Namespace, data: Pixels) -> None:
        super().__init__(args, data)
        torch.manual_seed(args.seed)
        layout = {"depths": tuple(args.depths), "embed_dim": args.embed_dim, "patch_size": args.patch_size}
        side = data.train[0].shape[-1]
        self.model = timm.create_model("orthovit_tiny_projunn", img_size=side, **layout, **NETWORKS[args.network])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.lr, weight_decay=0.0)
        if self.is_unitary:
            attach(self.model, self.optimizer)
        self.scheduler = LambdaLR(self.optimizer, self.share_of_rate)
        self.title = f"{args.network}, rate {args.lr:g}, seed {args.seed}"
        self.open({"title": args.images}, timm=timm.__version__)

    @property
    def is_unitary(self) -> bool:
        return any(True for _ in unitary_weights(self.model))

    def config(self) -> dict[str, Any]:
        return self.options_but()

    def share_of_rate(self, step: int) -> float:
        """What part of the highest rate is that of a step."""
        steps = self.per_epoch * self.args.epochs
        return min((step + 1) / (steps / 20), 0.5 + 0.5 * math.cos(math.pi * step / steps), 1.0)

    def unitarity_error(self) -> float | None:
        return float(unitarity_error_of(self.model)) if self.is_unitary else None

    def result(self) -> dict[str, str]:
        """The row of the table."""
        last = self.log.rows[-1]
        numbers = {name: last[name] for name in ("loss", "test_loss", "test_accuracy", "unitarity_error", "seconds")}
        values = {"network": self.args.network, "rate": self.args.lr, "seed": self.args.seed, "steps": self.step}
        return {k: str(v) for k, v in values.items()} | {k: "" if v is None else f"{v:.4g}" for k, v in numbers.items()}


def runs_of(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each run, a seed after another."""
    shared = ("images", "images_used", "epochs", "batch_size", "patch_size", "embed_dim", "depths", "resume")
    common = {name: getattr(args, name) for name in (*shared, "overwrite", "threads", "device")}
    return [
        argparse.Namespace(**common, network=network, lr=lr, seed=seed, out=args.out / f"{network}_{lr:g}_{seed}")
        for seed in args.seeds
        for lr in args.lr
        for network in args.networks
    ]


def draw(path: Path) -> None:
    """PNG beside the table: test accuracy and loss against the rate, the mean of all seeds as a line."""
    rows = read_table(path)
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, column in zip(panels, ("test_accuracy", "loss"), strict=True):
        curves = []
        for network in dict.fromkeys(row["network"] for row in rows):
            found: dict[float, list[float]] = {}
            for row in rows:
                if row["network"] == network:
                    found.setdefault(float(row["rate"]), []).append(float(row[column]))
            curves.append(Curve(network, [(rate, statistics.fmean(values)) for rate, values in found.items()]))
        draw_curves(axes, curves)
        for color, curve in enumerate(curves):
            single = [(float(row["rate"]), float(row[column])) for row in rows if row["network"] == curve.label]
            axes.plot(*zip(*single, strict=True), ".", color=f"C{color}", alpha=0.5)
        axes.set(xscale="log", xlabel="learning rate of AdamW", ylabel=column.replace("_", " "))
    panels[1].set(ylabel="training loss, last epoch")
    add_legend(panels[0])
    figure.savefig(path.with_suffix(".png"), dpi=120)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = options.add_argument
    add("--networks", nargs="+", choices=list(NETWORKS), default=DEFAULT)
    add("--lr", type=number, nargs="+", default=[1e-3, 3e-3, 1e-2], help="highest rates of AdamW")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--images", choices=IMAGE_SETS, default="fashion")
    add("--root", type=Path, default=Path("data"), help="where the images are kept")
    add("--images-used", type=int, default=60000, help="how many of the training images")
    add("--epochs", type=int, default=2)
    add("--batch-size", type=int, default=100)
    add("--patch-size", type=int, default=4)
    add("--embed-dim", type=int, default=128)
    add("--depths", type=int, nargs="+", default=[2, 2, 2])
    add("--threads", type=int, default=None, help="CPU threads; torch's own choice if not given")
    add("--out", type=Path, default=Path("runs/orthovit"), help="folder of the results")
    add("--resume", action="store_true", help="go on with the runs in --out")
    add("--overwrite", action="store_true", help="replace the runs in --out")
    add("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and train nothing")
    options.set_defaults(device="cpu")
    return options


def main(argv: list[str] | None = None) -> None:
    args = parsed(parser(), argv, QUICK)
    if args.draw is not None:
        return draw(args.draw)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    data, rows = Pixels(load_images(args.images, args.root), args.images_used), []
    for given in runs_of(args):
        run = Run(given, data)
        run.run()
        rows.append(run.result())
        write_table(args.out / "orthovit.csv", rows)
        draw(args.out / "orthovit.csv")


if __name__ == "__main__":
    main()

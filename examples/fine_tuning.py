"""How to go on from trained weights: the same images turned by a quarter, of which there are few.

A model whose weights come with the package has seen its images upright. Here it learns them turned by 90 degrees, from
a thousand: "head" trains the classifier alone; "attached" all of the model, its orthonormal kernels by their own rule
at a part of its length, of which 1 is what `attach` does unless told otherwise; "reverted" makes all layers torch's own
first and trains them by AdamW. AdamW moves all else in each of them, and all rates fall by a cosine.

    python examples/fine_tuning.py --quick
    python examples/fine_tuning.py
    python examples/fine_tuning.py --draw results/fine_tuning.csv

`--out` gets fine_tuning.csv, a row a run, and fine_tuning.png. What the table has is not run again.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from common.drawing import Curve, add_legend, draw_curves
from common.image_data import SETS, make_dataset
from common.image_memory import held
from common.options import number, parsed
from common.table import Row, matching, mean_of, read_table, write_table
from common.weights import set_of
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import trange

from unitary_layers import attach, revert

WAYS = ("head", "attached", "reverted")
QUICK = {
    "model": "orthoplain100_projunn.digits",
    "rates": [1e-3],
    "lengths": [0.03, 1.0],
    "seeds": [0],
    "used": 40,
    "tested": 40,
    "epochs": 1,
    "batch_size": 20,
}


def turned_images(args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images of the first ``--used``, test images of the first ``--tested``, each followed by its classes."""
    name = set_of(args.model.partition(".")[2])
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (SETS[name].mean, SETS[name].std))
    parts = []
    for is_train, count in ((True, args.used), (False, args.tested)):
        images, classes = held(make_dataset(name, args.root, is_train))
        parts += [((images[:count].rot90(1, (2, 3)).float() / 255) - mean) / std, classes[:count]]
    return tuple(parts)  # type: ignore[return-value]


def prepared(args: argparse.Namespace, way: str, lr: float, length: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The trained model and the optimiser of one way to go on."""
    model = timm.create_model(args.model, pretrained=True)
    if way == "head":
        model.requires_grad_(False)
        model.get_classifier().requires_grad_(True)
    elif way == "reverted":
        revert(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    if way == "attached":
        attach(model, optimizer, lr_scale=lambda group: length * group["lr"] / lr)
    return model, optimizer


def fine_tune(args: argparse.Namespace, keys: Row, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """Share of the test images that a model names right after one training."""
    x, y, test_x, test_y = data
    way, lr, length = keys["way"], float(keys["lr"]), float(keys["length"] or 0)
    torch.manual_seed(int(keys["seed"]))
    model, optimizer = prepared(args, way, lr, length)
    scheduler = CosineAnnealingLR(optimizer, args.epochs * (len(x) // args.batch_size))
    for _ in trange(args.epochs, desc=", ".join(keys.values()), disable=not sys.stderr.isatty()):
        model.train(way != "head")  # what is frozen has no statistics to gather
        for rows in torch.randperm(len(x)).split(args.batch_size)[: len(x) // args.batch_size]:
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        found = torch.cat([model.eval()(part).argmax(1) for part in test_x.split(250)])
    return float((found == test_y).double().mean())


def draw(path: Path) -> None:
    """PNG beside a table: accuracy against the length of a step, each way at its best rate; the others as lines."""
    rows = read_table(path)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lengths = sorted({float(row["length"]) for row in rows if row["length"]})
    curves = []
    for way in dict.fromkeys(row["way"] for row in rows):
        of_way = matching(rows, {"way": way})
        tried = [matching(of_way, {"lr": row["lr"], "length": row["length"]}) for row in of_way]
        lr = max(tried, key=lambda seeds: (len(seeds), mean_of(seeds, "accuracy")))[0]["lr"]
        found = matching(of_way, {"lr": lr})
        of_length = {s: [row for row in found if not row["length"] or float(row["length"]) == s] for s in lengths}
        points = [(s, mean_of(of_length[s], "accuracy")) for s in lengths]
        curves.append(Curve(f"{way}, rate {lr}", points, {"linestyle": "-" if way == "attached" else "--"}))
    draw_curves(axes, curves)
    axes.set(xscale="log", xlabel="steps of unitary weights over their own length", ylabel="test accuracy")
    axes.set_title("trained weights learn images turned by 90 degrees")
    add_legend(axes)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="fine_tuning.py", description=__doc__.partition("\n")[0])
    add = options.add_argument
    add("--model", default="stiefelnet_projunn.cifar10", help="a model with trained weights, and their tag")
    add("--root", type=Path, default=Path("data"), help="where the images are, or are downloaded to")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add("--rates", nargs="+", type=number, default=[3e-4, 1e-3, 3e-3], help="highest rates of AdamW")
    add("--lengths", nargs="+", type=number, default=[0.01, 0.03, 0.1, 0.3, 1.0], help="parts of the rule's length")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--used", type=int, default=1000, help="training images")
    add("--tested", type=int, default=2000, help="test images")
    add("--epochs", type=int, default=5)
    add("--batch-size", type=int, default=50)
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=Path("runs/fine_tuning"), help="folder of the results")
    add("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and train nothing")
    return options


def main(argv: list[str] | None = None) -> None:
    args = parsed(parser(), argv, QUICK)
    if args.draw is not None:
        return draw(args.draw)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    table, data = args.out / "fine_tuning.csv", turned_images(args)
    rows: list[Row] = read_table(table)
    for seed, lr, way in product(args.seeds, args.rates, args.ways):
        for length in args.lengths if way == "attached" else [None]:
            keys = {"way": way, "lr": f"{lr:g}", "length": "" if length is None else f"{length:g}", "seed": str(seed)}
            keys |= {name: str(getattr(args, name)) for name in ("model", "used", "tested", "epochs", "batch_size")}
            if matching(rows, keys):
                continue
            start = time.process_time()
            accuracy = f"{fine_tune(args, keys, data):.4g}"
            rows.append(keys | {"accuracy": accuracy, "seconds": f"{time.process_time() - start:.3g}"})
            print(", ".join(rows[-1].values()), flush=True)
            write_table(table, rows)
    draw(table)


if __name__ == "__main__":
    main()

"""How few bits does a recurrent network need? Recurrent matrices of signs and Hadamard matrices, on two tasks.

Copying memory (delay 1000, width 128) and permuted MNIST (width 512): a linear recurrence without biases, and a ReLU
and a linear readout at its states, as in HadamRNN (Foucault, Mamalet, Malgouyres, arXiv 2502.00047). "frozen" leaves
the signs where they start, "two stages" has two signs a unit, "blocks" 0, 1 and -1 for entries, and "float" is a
`UnitaryRNN` of the same width, whose matrix moves by projUNN or not at all. The other weights are trained in float32;
then they are rounded to 8 and to 4 bits, with the scale of the least mean square error, and not trained any more.

    python examples/hadamard.py --quick
    python examples/hadamard.py --data data --resume
    python examples/hadamard.py --tasks pixels --networks blocks "float, frozen" --widths 256 512 --out runs/more
    python examples/hadamard.py --draw results/hadamard.csv

`--out` gets hadamard.csv, hadamard.png and a folder a network, from which `--resume` goes on.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common.drawing import Curve, add_legend, draw_curves
from common.images import IMAGE_SETS, load_images
from common.log import describe
from common.options import number, parsed
from common.resumable import ResumableRun
from common.tasks import CopyingMemory, PixelSequence, Task
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from unitary_layers import HadamardRNN, UnitaryRNN, attach

# name: of a HadamardRNN its options, of a UnitaryRNN None; and whether the recurrent matrix moves
NETWORKS: dict[str, tuple[dict[str, Any] | None, bool]] = {
    "signs": ({}, True),
    "signs, frozen": ({}, False),
    "two stages": ({"stages": 2}, True),
    "two stages, frozen": ({"stages": 2}, False),
    "blocks": ({"block": 16}, True),
    "float": (None, True),
    "float, frozen": (None, False),
}
DEFAULT = {"copying": ["signs, frozen"], "pixels": ["signs, frozen", "two stages, frozen", "signs"]}
BITS = (32, 8, 4)
FIELDS = ("task", "network", "width", "bits", "kilobytes", "test_loss", "test_accuracy", "steps", "flipped")
QUICK = {"images": "digits", "epochs": 2, "steps": 20, "delay": 20, "widths": [16], "copying_width": 16}


class Model(nn.Module):
    """A linear recurrence, a ReLU and a readout: of every state, or of the last."""

    def __init__(self, network: str, task: Task, width: int) -> None:
        super().__init__()
        options, moves = NETWORKS[network]
        kind = UnitaryRNN if options is None else HadamardRNN
        given = {"nonlinearity": "identity", "bias": False, "return_sequence": task.every_step, **(options or {})}
        self.rnn = kind(task.input_size, width, **given)
        self.readout = nn.Linear(width, task.output_size)
        self.recurrent = [getattr(self.rnn, f"{self.rnn.recurrent}_l0")]
        self.recurrent[0].requires_grad_(moves)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.readout(torch.relu(states))

    def bits_of_recurrence(self) -> int:
        """How many bits the recurrent matrix takes."""
        if isinstance(self.rnn, HadamardRNN):
            return 8 * sum(packed.numel() for packed in self.rnn.packed().values())
        return 32 * self.recurrent[0].numel()


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A weight on a grid of ``2^bits`` values with the scale of the least mean square error; as it is for 32 bits."""
    if bits == 32:
        return weight
    most = 2 ** (bits - 1) - 1
    scales = weight.abs().max() / most * torch.linspace(0.2, 1, 81)
    tried = [torch.clamp(torch.round(weight / scale), -most, most) * scale for scale in scales]
    return min(tried, key=lambda t: float((t - weight).square().sum()))


@torch.no_grad()
def with_bits(model: Model, bits: int) -> tuple[Model, float]:
    """A copy with input weight and readout of so many bits, and the kilobytes (1,000 bytes) of all its numbers."""
    twin = copy.deepcopy(model)
    weights = [twin.rnn.weight_ih_l0, twin.readout.weight]
    for weight in weights:
        weight.copy_(rounded(weight, bits))
    count = sum(weight.numel() for weight in weights)
    return twin, (bits * count + 32 * twin.readout.bias.numel() + twin.bits_of_recurrence()) / 8000


class Run(ResumableRun):
    """The training of one network."""

    def __init__(self, args: argparse.Namespace, task: Task) -> None:
        super().__init__(args)
        self.task = task
        torch.manual_seed(args.seed)
        self.model = Model(args.network, task, args.width)
        self.start = self.signs()
        own = {id(p) for p in self.model.recurrent}
        groups = [{"params": [p for p in self.model.parameters() if id(p) not in own], "lr": args.lr}]
        groups += [{"params": self.model.recurrent, "lr": args.sign_lr}]
        self.optimizer = torch.optim.Adam(groups)
        if not isinstance(self.model.rnn, HadamardRNN):
            attach(self.model, self.optimizer)
        self.scheduler = LambdaLR(self.optimizer, self.share_of_rate)
        self.open({"title": task.title, "baseline": task.baseline, "baseline_name": task.baseline_name})

    def config(self) -> dict[str, Any]:
        return self.options_but("data", "log_every")

    def share_of_rate(self, step: int) -> float:
        """What part of the highest rate is that of a step: it rises over a twentieth of the run, then falls to zero."""
        rising = (step + 1) / (self.args.steps / 20)
        return min(rising, 0.5 + 0.5 * math.cos(math.pi * step / self.args.steps))

    def signs(self) -> Tensor:
        """The signs, of a matrix of floats those of its entries."""
        return self.model.recurrent[0].detach().clone() >= 0

    def run(self) -> None:
        """Train to the last step."""
        self.model.train()
        bar = tqdm(initial=self.step, total=self.args.steps, desc=self.args.out.name, disable=not sys.stderr.isatty())
        losses: list[float] = []
        with bar:
            while self.step < self.args.steps:
                start = time.perf_counter()
                inputs, targets = self.task.batch(self.step)
                loss = self.task.loss(self.model(inputs), targets)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                losses.append(loss.item())
                self.step, self.seconds = self.step + 1, self.seconds + time.perf_counter() - start
                bar.update()
                if self.step % self.args.log_every == 0 or self.step == self.args.steps:
                    self.log.append({"step": self.step, "loss": sum(losses) / len(losses), "seconds": self.seconds})
                    print(f"{self.args.out.name} {describe(self.log.rows[-1])}", flush=True)
                    losses = []
                    self.save()

    @torch.no_grad()
    def rows(self) -> list[dict[str, Any]]:
        """A row of the table for each number of bits."""
        flipped = int((self.signs() != self.start).sum()) if isinstance(self.model.rnn, HadamardRNN) else ""
        common = {"task": self.task.title, "network": self.args.network, "width": self.args.width}
        common |= {"steps": self.step, "flipped": flipped}
        rows = []
        for bits in BITS:
            model, kilobytes = with_bits(self.model.eval(), bits)
            sums, count = [0.0, 0.0], 0
            for inputs, targets in self.task.test_batches():
                outputs, size = model(inputs), inputs.size(1)
                sums[0] += self.task.loss(outputs, targets).item() * size
                sums[1] += self.task.accuracy(outputs, targets).item() * size
                count += size
            found = {"test_loss": f"{sums[0] / count:.4g}", "test_accuracy": round(sums[1] / count, 4)}
            rows.append(common | found | {"bits": bits, "kilobytes": round(kilobytes, 2)})
        return rows


def draw(path: Path) -> None:
    """PNG beside the table: accuracy against kilobytes, a task a panel."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    tasks = sorted({row["task"] for row in rows})
    figure = Figure(figsize=(7 * len(tasks), 4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["task"] == task:
                label = f"{row['network']}, {row['width']}"
                curves.setdefault(label, []).append((float(row["kilobytes"]), float(row["test_accuracy"])))
        draw_curves(axes, [Curve(label, points) for label, points in curves.items()])
        axes.set(xscale="log", xlabel="kilobytes, at 32, 8 and 4 bits", ylabel="test accuracy", title=task)
        add_legend(axes, fontsize="small")
    figure.savefig(path.with_suffix(".png"), dpi=120)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = options.add_argument
    add("--tasks", nargs="+", choices=("copying", "pixels"), default=["copying", "pixels"])
    add("--networks", nargs="+", choices=list(NETWORKS), help=f"of each task; if not given {DEFAULT}")
    add("--widths", type=int, nargs="+", default=[512], help="of the networks that read pixels")
    add("--copying-width", type=int, default=128)
    add("--delay", type=int, default=1000)
    add("--images", choices=IMAGE_SETS, default="mnist")
    add("--data", type=Path, default=Path("data"), help="where MNIST is kept")
    add("--steps", type=int, default=1200, help="of copying")
    add("--epochs", type=int, default=4, help="of pixels")
    add("--lr", type=number, default=1e-2, help="highest rate of Adam")
    add("--sign-lr", type=number, default=3e-3, help="highest rate of the latent signs")
    add("--seed", type=int, default=0)
    add("--log-every", type=int, default=50, help="steps between rows of the log and checkpoints")
    add("--out", type=Path, default=Path("runs/hadamard"), help="folder of the results")
    add("--device", default="cpu")
    add("--resume", action="store_true", help="go on with the runs in --out")
    add("--overwrite", action="store_true", help="replace the runs in --out")
    add("--draw", type=Path, metavar="CSV", help="draw this table anew beside it, and train nothing")
    return options


def runs_of(args: argparse.Namespace) -> list[tuple[argparse.Namespace, Task]]:
    """The options and the task of each network."""
    common = {"seed": args.seed, "device": args.device}
    found = []
    kept = ("network", "width", "steps", "lr", "sign_lr", "seed", "log_every", "out", "device", "resume", "overwrite")
    for name in args.tasks:
        if name == "copying":
            task: Task = CopyingMemory(delay=args.delay, batch_size=32, **common)
            steps, widths = args.steps, [args.copying_width]
        else:
            task = PixelSequence(permute=True, batch_size=250, **common, **load_images(args.images, args.data))
            steps, widths = args.epochs * task.eval_every, args.widths
        for width in widths:
            for network in args.networks or DEFAULT[name]:
                folder = f"{name}_{width}_{network.replace(', ', '_').replace(' ', '_')}"
                given = vars(args) | {"network": network, "width": width, "steps": steps, "out": args.out / folder}
                found.append((argparse.Namespace(**{key: given[key] for key in kept}), task))
    return found


def main(argv: list[str] | None = None) -> None:
    args = parsed(parser(), argv, QUICK)
    if args.draw is not None:
        return draw(args.draw)
    rows: list[dict[str, Any]] = []
    for given, task in runs_of(args):
        run = Run(given, task)
        run.run()
        rows += run.rows()
        with (args.out / "hadamard.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        draw(args.out / "hadamard.csv")
    for row in rows:
        print(", ".join(f"{row[name]}" for name in FIELDS), flush=True)


if __name__ == "__main__":
    main()

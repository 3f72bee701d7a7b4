"""How few bits does a unitary recurrence need? Training with rounded weights, their errors, and integer inference.

Copying memory at delay 1000 by a linear recurrence of width 128 with ReLU at the read-out, and pixels in permuted order
by one layer of width 128: scikit-learn's digits with modReLU for 40 epochs, MNIST by a linear recurrence with a
read-out of two layers for 3 epochs. Recurrent weights are those of `UnitaryRNN(weight_bits=...)`, and float32 beside
them. The system is QORNN (Foucault, Mamalet, Malgouyres, arXiv 2402.04012); codes and scales are this package's. Three
tables go to `--out`:

- quantised.csv: loss and accuracy of each run, the accuracy with integers (the states rounded to 15 bits at each step,
  products by torch's matrix product of int8), and kilobytes of the recurrent weight;
- quantised_errors.csv: bits and scales without training: the error, and how far a linear recurrence grows in 1,000
  steps;
- quantised_steps.csv: microseconds of one step of the recurrence in float32 and with integers.

    python examples/quantised.py --quick
    python examples/quantised.py --data data
    python examples/quantised.py --tasks digits --seeds 0 1 2
    python examples/quantised.py --tasks --out runs/tables
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import copying_memory
import pixel_sequence
import torch
import torch.nn.functional as F
from common.curves import draw_task
from common.models import SequenceModel
from common.training import Trainer
from matplotlib.figure import Figure
from torch import Tensor

from unitary_layers import UnitaryLinear, UnitaryRNN

SCALES = ("row", "mse", "max")
BITS = (2, 3, 4, 8)
CALLS = 5  # that are timed together


class Recipe(NamedTuple):
    """One task.

    Attributes:
        script: the example that sets it up.
        options: its command line.
        bits: with which it is trained, 0 for float32.
    """

    script: ModuleType
    options: str
    bits: tuple[int, ...]


RECIPES = {
    "copying": Recipe(
        copying_memory,
        "--width 128 --batch-size 32 --nonlinearity identity --relu-readout --lr 5e-3 --unitary-lr 0.001 --steps 800",
        (0, 2, 4),
    ),
    "digits": Recipe(
        pixel_sequence,
        "--images digits --permute --width 128 --init haar --unitary-lr 0.005 --epochs 40 --log-every 110",
        (0, 2, 4, 8),
    ),
    "permuted_mnist": Recipe(
        pixel_sequence,
        "--permute --width 128 --nonlinearity identity --readout-width 128 --unitary-lr 0.0003 --epochs 3 "
        "--log-every 117",
        (0, 4, 8),
    ),
}
QUICK = {"copying": "--delay 10 --steps 3", "digits": "--steps 3", "permuted_mnist": "--images digits --steps 3"}


def label(bits: int, scale: str) -> str:
    """Of a run."""
    return f"{bits} bits, {scale}" if bits else "float32"


def kilobytes(layer: UnitaryRNN) -> float:
    """Of the recurrent weight: float32, or packed codes and their float32 scales."""
    count = layer.weight_hh_l0.numel()
    if layer.quantiser is None:
        return 4 * count / 1000
    return (layer.quantiser.bits * count / 8 + 4 * layer.integer()[1].numel()) / 1000


def integer_step(h: Tensor, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """`h W^T + x` of states `(b, n)`, each rounded to 15 bits, and a weight in integers, transposed, with its scales.

    A state is 128 times one int8 and another: with 8 bits alone its rounding errors add up over a thousand steps.
    """
    size = h.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(h.dtype).tiny) / (127 * 128)
    high = (h / (128 * size)).round()
    low = (h / size - 128 * high).round()
    product = torch._int_mm(torch.cat([high, low]).to(torch.int8), codes).to(h.dtype)  # summed in int32
    return torch.addcmul(x, product[: len(h)].mul(128).add_(product[len(h) :]), size * scale)


@torch.no_grad()
def integer_outputs(model: SequenceModel, inputs: Tensor) -> Tensor:
    """What the model says with an int8 recurrent weight, and states that are rounded to two int8 for the product."""
    layer = model.layer
    codes, scale = layer.integer()
    projected = F.linear(inputs, layer.weight_ih_l0, layer.bias_ih_l0 + layer.bias_hh_l0)
    h, states = torch.zeros_like(projected[0]), []
    for x in projected:
        h = layer.activations[0](integer_step(h, x, codes.mT, scale.flatten()))
        states.append(h)
    return model.read_out(torch.stack(states) if model.every_step else h)


def trained(name: str, bits: int, scale: str, seed: int, args: argparse.Namespace) -> Trainer:
    """A run, which goes on where it was stopped."""
    recipe, folder = RECIPES[name], args.out / f"{name}_{bits}_{scale}_{seed}"
    line = f"{recipe.options} --schedule cosine --scale {scale} --seed {seed} --threads {args.threads} --resume"
    line += f" --bits {bits}" if bits else ""
    line += f" {QUICK[name]}" if args.quick else ""
    line += f" --data {args.data}" if name == "permuted_mnist" else ""
    trainer = Trainer(*recipe.script.setup([*line.split(), "--out", str(folder)]))
    trainer.run()
    return trainer


@torch.no_grad()
def result(name: str, bits: int, scale: str, trainer: Trainer) -> dict[str, object]:
    """The row of a run."""
    model, task = trainer.model.eval(), trainer.task
    losses, exact, integer, batches = 0.0, 0.0, 0.0, 0
    for inputs, targets in task.test_batches():
        outputs = model(inputs)
        losses += float(task.loss(outputs, targets))
        exact += float(task.accuracy(outputs, targets))
        if bits:
            integer += float(task.accuracy(integer_outputs(model, inputs), targets))
        batches += 1
    return {
        "task": name,
        "weights": label(bits, scale),
        "seed": trainer.args.seed,
        "steps": trainer.step,
        "test_loss": f"{losses / batches:.3g}",
        "test_accuracy": f"{exact / batches:.4f}",
        "integer_accuracy": f"{integer / batches:.4f}" if bits else "",
        "kilobytes": f"{kilobytes(model.layer):.1f}",
        "unitarity_error": f"{float(model.layer.unitarity_error()):.1e}",
        "seconds": f"{trainer.seconds:.0f}",
    }


@torch.no_grad()
def errors(n: int, steps: int) -> Iterator[dict[str, object]]:
    """The error of a Haar matrix, and the growth of states over some steps, by bits and scales."""
    for bits in BITS:
        for scale in SCALES:
            torch.manual_seed(0)
            haar = UnitaryLinear(n, n, weight_bits=bits, weight_scale=scale)
            distance = torch.linalg.matrix_norm(torch.mul(*haar.integer()) - haar.weight) / math.sqrt(n)
            growth = {}
            for init in ("haar", "henaff"):
                options = {"bias": False, "weight_bits": bits, "weight_scale": scale, "dtype": torch.float64}
                rnn = UnitaryRNN(1, n, nonlinearity="identity", init=init, **options)
                h = torch.randn(1, 16, n, dtype=torch.float64)
                _, after = rnn(torch.zeros(steps, 16, 1, dtype=torch.float64), h)
                growth[f"growth_{init}"] = f"{float((after.norm(dim=-1) / h.norm(dim=-1)).median()):.2g}"
            size = {"kilobytes": f"{kilobytes(rnn):.1f}"}
            yield {"bits": bits, "scale": scale, "error_haar": f"{float(distance):.3f}", **growth, **size}


@torch.no_grad()
def steps(sizes: tuple[int, ...], repetitions: int) -> Iterator[dict[str, object]]:
    """Microseconds of a step `h W^T + x`, in float32 and with integers of int8, which serve for 4 bits as well."""
    for n in sizes:
        codes, scale = UnitaryLinear(n, n, bias=False, weight_bits=4).integer()
        weight, codes, scale = (codes * scale).mT, codes.mT, scale.flatten()
        for batch in (1, 32):
            h, x = torch.randn(2, batch, n)
            rounded = (20 * h).clamp(-127, 127).to(torch.int8)
            works = {
                "float32": partial(torch.addmm, x, h, weight),
                "int8_product": partial(torch._int_mm, rounded, codes),
                "int8_step": partial(integer_step, h, x, codes, scale),
            }
            # The least of many, for on a machine that is shared most are interrupted.
            least = {name: min(timed(work) for _ in range(repetitions)) for name, work in works.items()}
            yield {"width": n, "batch": batch} | {name: f"{1e6 * seconds:.1f}" for name, seconds in least.items()}


def timed(work: Callable[[], object]) -> float:
    """Seconds of a work, of some calls that the clock costs nothing."""
    start = time.perf_counter()
    for _ in range(CALLS):
        work()
    return (time.perf_counter() - start) / CALLS


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """A table, which is also printed."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print("\n".join(["", " | ".join(rows[0]), *(" | ".join(map(str, row.values())) for row in rows)]), flush=True)


def draw(path: Path, runs: dict[str, dict[str, Trainer]]) -> None:
    """The curves of all runs, a line of panels for each task."""
    figure = Figure(figsize=(13, 4 * len(runs)), layout="constrained")
    for axes, trainers in zip(figure.subplots(len(runs), 2, squeeze=False), runs.values(), strict=True):
        logs = {name: trainer.log.rows for name, trainer in trainers.items()}
        draw_task(list(axes), logs, **next(iter(trainers.values())).summary)
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="quantised.py", description=__doc__.partition("\n")[0])
    add = options.add_argument
    add("--tasks", nargs="*", choices=tuple(RECIPES), default=list(RECIPES), help="to train; or none")
    add("--bits", type=int, nargs="+", help="of the runs, 0 for float32; as the tasks have it if not given")
    add("--scales", nargs="+", choices=SCALES, default=["row"], help="of the runs")
    add("--seeds", type=int, nargs="+", default=[0], help="of the weights and the data")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--data", type=Path, default=Path("data"), help="where MNIST is kept")
    add("--out", type=Path, default=Path("runs/quantised"), help="folder of the results")
    add("--quick", action="store_true", help="a few steps of each, to see that all works")
    args = options.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    write(args.out / "quantised_errors.csv", list(errors(*((16, 10) if args.quick else (256, 1000)))))
    sizes, repetitions = ((128,), 3) if args.quick else ((128, 256, 512, 1024), 300)
    write(args.out / "quantised_steps.csv", list(steps(sizes, repetitions)))
    rows: list[dict[str, object]] = []
    runs: dict[str, dict[str, Trainer]] = {}
    for name, seed in product(args.tasks, args.seeds):
        for bits in args.bits or RECIPES[name].bits:
            for scale in args.scales if bits else args.scales[:1]:
                trainer = trained(name, bits, scale, seed, args)
                runs.setdefault(name, {})[f"{label(bits, scale)}, seed {seed}"] = trainer
                rows.append(result(name, bits, scale, trainer))
                write(args.out / "quantised.csv", rows)
    if runs:
        draw(args.out / "quantised.png", runs)


if __name__ == "__main__":
    main()

"""Tasks on sequences, by a unitary recurrence with modReLU."""

from __future__ import annotations

import sysconfig
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from common import tasks
from common.images import load_digits
from common.series import read_series, where_to_get
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from unitary_layers import UnitaryRNN

from .task import SQUARES, Call, Metric, Missing, Task, accuracy, drawn

BITS = Metric("test bits a character", False)
RECALL = Metric("test accuracy of recall, %", True)
LR = 3e-3  # of AdamW for what is not unitary


class Reader(nn.Module):
    """A recurrence over `(time, batch, channels)` or a packed sequence, read out after each step or after the last."""

    def __init__(self, inputs: int, outputs: int, width: int = 64, every_step: bool = False) -> None:
        super().__init__()
        self.every_step = every_step
        self.layer = UnitaryRNN(inputs, width, nonlinearity="modrelu", init="henaff")
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor | PackedSequence) -> Tensor:
        states, last = self.layer(x)
        last = last[0] if isinstance(last, tuple) else last  # of an LSTM the state that it shows
        return self.head(states if self.every_step else last[0])


def pixels(_root: Path, steps: int = 300) -> Task:
    """scikit-learn's digits, a pixel a time step."""
    found = load_digits()
    (x, y), (x_test, y_test) = (((a.flatten(1) / 16)[..., None], b) for a, b in (found["train"], found["test"]))
    rows = drawn(x, y, 128)

    def batch(generator: Generator) -> tuple[Tensor, Tensor]:
        a, b = rows(generator)
        return a.transpose(0, 1), b

    def test(call: Call) -> float:
        return accuracy(x_test, y_test)(lambda a: call(a.transpose(0, 1)))

    return Task(model=partial(Reader, 1, 10), batch=batch, test=test, steps=steps, lr=LR, recurrent=True)


def spoken(path: Path) -> tuple[list[Tensor], Tensor]:
    """The sequences `(time, channels)` and labels of a file in the .ts format of the UEA archive."""
    if not path.exists():
        raise Missing(where_to_get(path))
    return read_series(path)


def vowels(root: Path, steps: int = 500) -> Task:
    """Japanese vowels: which of nine speakers it was, from 7 to 29 time steps of 12 channels."""
    (x, y), (x_test, y_test) = (spoken(root / f"JapaneseVowels/JapaneseVowels_{s}.ts") for s in ("TRAIN", "TEST"))
    every = pack_sequence(x_test, enforce_sorted=False)

    def batch(generator: Generator) -> tuple[PackedSequence, Tensor]:
        index = torch.randint(len(x), (64,), generator=generator)
        return pack_sequence([x[i] for i in index.tolist()], enforce_sorted=False), y[index]

    def test(call: Call) -> float:
        return 100 * float((call(every).argmax(-1) == y_test).float().mean())

    return Task(model=partial(Reader, 12, 9), batch=batch, test=test, steps=steps, lr=LR, recurrent=True)


def _synthetic(source: tasks.Task, metric: Metric, steps: int, lr: float = LR) -> Task:
    """A task of the other examples, whose batches are fresh; here they are drawn from the generator of the step."""

    def batch(generator: Generator) -> tuple[Tensor, Tensor]:
        return source.batch(int(torch.randint(2**30, (), generator=generator)))

    def test(call: Call) -> float:
        pairs = [(call(x), y) for x, y in source.test_batches()]
        if metric is SQUARES:
            return sum(float(source.loss(a, y)) for a, y in pairs) / len(pairs)
        return 100 * sum(float(source.accuracy(a, y)) for a, y in pairs) / len(pairs)

    model = partial(Reader, source.input_size, source.output_size, every_step=source.every_step)
    options = {"loss": source.loss, "test": test, "metric": metric}
    return Task(model=model, batch=batch, steps=steps, lr=lr, recurrent=True, **options)


def copying(_root: Path, steps: int = 400) -> Task:
    """Recall of ten symbols after 50 blanks."""
    return _synthetic(tasks.CopyingMemory(delay=50, batch_size=64), RECALL, steps)


def adding(_root: Path, steps: int = 1000) -> Task:
    """The sum of two marked numbers of 30."""
    return _synthetic(tasks.AddingProblem(length=30, batch_size=64), SQUARES, steps, lr=1e-2)


def text() -> Tensor:
    """Indices below 128 of the characters of some modules of Python's standard library."""
    names = ("argparse", "ast", "datetime", "decimal", "inspect", "pathlib", "tarfile", "typing", "subprocess")
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = "".join((folder / f"{n}.py").read_text() for n in names if (folder / f"{n}.py").exists())
    return torch.tensor([ord(c) for c in found if ord(c) < 128])


def characters(_root: Path, steps: int = 300) -> Task:
    """The next character of Python's own sources."""
    source, length, symbols = text(), 48, 128
    train, held_out = source[: -len(source) // 10], source[-len(source) // 10 :]
    places = torch.arange(0, len(held_out) - length - 1, length)[:256]

    def windows(characters: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        found = characters[starts + torch.arange(length + 1)[:, None]]
        return F.one_hot(found[:-1], symbols).float(), found[1:]

    def batch(generator: Generator) -> tuple[Tensor, Tensor]:
        return windows(train, torch.randint(len(train) - length - 1, (64,), generator=generator))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(end_dim=1), targets.flatten())

    def test(call: Call) -> float:
        x, y = windows(held_out, places)
        return float(loss(call(x), y)) / 0.6931471805599453

    model = partial(Reader, symbols, symbols, width=128, every_step=True)
    options = {"loss": loss, "test": test, "metric": BITS}
    return Task(model=model, batch=batch, steps=steps, lr=LR, recurrent=True, **options)

"""Sequence tasks: copying memory, the adding problem and images read pixel by pixel.

Every tensor is time-major, `(time, batch, channels)`, as `nn.RNN` expects by default. The batch of a step is a function
of `(seed, step)` alone, so a resumed run needs no generator state to continue where it stopped.

Sources: Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997 (both synthetic tasks);
Arjovsky, Shah, Bengio, "Unitary Evolution Recurrent Neural Networks", ICML 2016, arXiv 1511.06464 (in use today);
Le, Jaitly, Hinton, "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units", arXiv 1504.00941 (pixels,
in order and permuted).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

PERMUTATION_SEED = 0  # the pixel order of the permuted task, whatever the seed of the run
HELD_OUT = range(2**31, 2**31 + 4)  # steps that no run reaches: their batches are the held-out data of synthetic tasks


def generator_for(seed: int, index: int) -> torch.Generator:
    """CPU generator for one step (or epoch) of a run.

    torch's Mersenne twister reads 32 bits of its seed, so `(seed, index)` is mixed into 32: no two indices of a run
    share a stream (the finaliser of MurmurHash3 is a bijection, github.com/aappleby/smhasher).
    """
    mixed = (seed * 0x9E3779B1 + index) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & 0xFFFFFFFF
    return torch.Generator().manual_seed(mixed ^ (mixed >> 16))


@dataclass(kw_only=True)
class Task(ABC):
    """What a model is trained on.

    Attributes:
        input_size, output_size: channels of the inputs and of the read-out.
        every_step: whether the read-out is wanted at every time step or only after the last.
        baseline: loss of the best predictor without memory, in the unit of `loss`.
        baseline_name: what that predictor is, for the legend of a plot.
        eval_every: steps between evaluations on held-out data; None for none, where every batch is fresh anyway.
    """

    batch_size: int
    seed: int = 0
    device: torch.device | str = "cpu"
    input_size = 1
    output_size = 1
    every_step = False
    baseline_name = "memoryless baseline"
    eval_every: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    @abstractmethod
    def title(self) -> str: ...

    @property
    @abstractmethod
    def baseline(self) -> float: ...

    @abstractmethod
    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs `(time, batch, input_size)` and targets of training step `step`, counted from 0."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor: ...

    @abstractmethod
    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor: ...

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Held-out batches; of a synthetic task those of steps that no run reaches."""
        return map(self.batch, HELD_OUT)


@dataclass(kw_only=True)
class CopyingMemory(Task):
    """Recall K = 10 symbols after a delay of T steps (arXiv 1511.06464, section 4.1).

    The input is the K symbols, T - 1 blanks, one delimiter and K blanks; the target is T + K blanks and the K symbols.
    The loss is the mean cross entropy (nats) over all T + 2K positions. Without memory the blanks can be predicted and
    the symbols only guessed: K log 8 / (T + 2K), 0.02039 at T = 1000. The accuracy counts the K recalled symbols alone.
    """

    delay: int = 1000
    length: int = 10
    symbols: int = 8
    every_step = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("delay", "length", "symbols"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.input_size = self.output_size = self.symbols + 2

    @property
    def title(self) -> str:
        return f"copying memory, delay {self.delay}"

    @property
    def baseline(self) -> float:
        return self.length * math.log(self.symbols) / (self.delay + 2 * self.length)

    def tokens(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets as integers `(time, batch)`; symbols from 0, then the blank, then the delimiter."""
        blank, delimiter = self.symbols, self.symbols + 1
        shape = self.length, self.batch_size
        message = torch.randint(self.symbols, shape, generator=generator_for(self.seed, step)).to(self.device)
        inputs = message.new_full((self.delay + 2 * self.length, self.batch_size), blank)
        targets = inputs.clone()
        inputs[: self.length] = message
        inputs[self.delay + self.length - 1] = delimiter
        targets[-self.length :] = message
        return inputs, targets

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.tokens(step)
        return F.one_hot(inputs, self.input_size).to(torch.get_default_dtype()), targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(rearrange(outputs, "t b c -> (t b) c"), rearrange(targets, "t b -> (t b)"))

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[-self.length :].argmax(-1) == targets[-self.length :]).float().mean()


@dataclass(kw_only=True)
class AddingProblem(Task):
    """Add the two marked numbers of a sequence (arXiv 1511.06464, section 4.2).

    The first channel is uniform in [0, 1), the second is 1 at one place of each half and 0 elsewhere; the target is the
    sum of the two marked numbers. The loss is the mean squared error; always answering 1 gives 1/6 = 0.167.
    The accuracy counts errors below 0.04 (Hochreiter and Schmidhuber 1997, section 5.4).

    Attributes:
        length: time steps.
        centre: what is taken off the numbers before they are read. The target stays the sum of the numbers themselves.
    """

    length: int = 200
    centre: float = 0.0
    input_size = 2
    baseline_name = "always answering 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 2:
            raise ValueError(f"length must be at least 2 (one marker in each half), got {self.length}")
        if not math.isfinite(self.centre):
            raise ValueError(f"centre must be finite, got {self.centre}")

    @property
    def title(self) -> str:
        return f"adding problem, {self.length} steps"

    @property
    def baseline(self) -> float:
        return 1 / 6

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator, half = generator_for(self.seed, step), self.length // 2
        values = torch.rand(self.length, self.batch_size, generator=generator)
        first = torch.randint(half, (1, self.batch_size), generator=generator)
        second = torch.randint(half, self.length, (1, self.batch_size), generator=generator)
        places = torch.cat((first, second))
        inputs = torch.stack((values - self.centre, torch.zeros_like(values).scatter_(0, places, 1.0)), -1)
        targets = values.gather(0, places).sum(0, keepdim=True).T
        return inputs.to(self.device), targets.to(self.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() < 0.04).float().mean()


@dataclass(kw_only=True)
class PixelSequence(Task):
    """Classify an image from its pixels, one per time step, in reading order or in one fixed random order.

    Grey values are scaled to [0, `gain`]. Each epoch visits the training images in an order drawn from `(seed, epoch)`
    and drops the last, incomplete batch. The loss is the cross entropy (nats); the baseline is a guess among the
    classes.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    permute: bool = False
    largest: int = 255
    gain: float = 1.0
    name: str = "images"
    baseline_name = "guessing"

    def __post_init__(self) -> None:
        super().__post_init__()
        images, labels = self.train
        if not 0 < self.gain < math.inf:
            raise ValueError(f"gain must be positive and finite, got {self.gain}")
        if self.batch_size > len(images):
            raise ValueError(f"batch_size must be at most the {len(images)} training images, got {self.batch_size}")
        self.output_size = int(labels.max()) + 1
        self.eval_every = len(images) // self.batch_size
        pixels = images[0].numel()
        order = torch.arange(pixels)
        if self.permute:
            order = torch.randperm(pixels, generator=torch.Generator().manual_seed(PERMUTATION_SEED))
        self.order = order
        self.train, self.test = self._on_device(self.train), self._on_device(self.test)
        self._epoch: tuple[int, Tensor] = (-1, order)

    def _on_device(self, data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = data
        return rearrange(images, "n h w -> n (h w)")[:, self.order].to(self.device), labels.to(self.device)

    @property
    def title(self) -> str:
        return f"{self.name}, {len(self.order)} pixels, {'permuted' if self.permute else 'in order'}"

    @property
    def baseline(self) -> float:
        return math.log(self.output_size)

    def _select(self, data: tuple[Tensor, Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = data
        return rearrange(images[index] * (self.gain / self.largest), "b t -> t b 1"), labels[index]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, self.eval_every)
        if self._epoch[0] != epoch:
            order = torch.randperm(len(self.train[0]), generator=generator_for(self.seed, epoch))
            self._epoch = epoch, order.to(self.device)
        start = place * self.batch_size
        return self._select(self.train, self._epoch[1][start : start + self.batch_size])

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.arange(len(self.test[0]), device=self.device).split(1000):
            yield self._select(self.test, index)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(-1) == targets).float().mean()

"""What a task is: a model, batches and a loss, the same for every contender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

Call = Callable[[Any], Tensor]  # of a model, with the weights of a contender


class Metric(NamedTuple):
    """What a model is judged by on data that it has not seen.

    Attributes:
        name: with its unit.
        higher: whether more is better.
    """

    name: str
    higher: bool


ACCURACY = Metric("test accuracy, %", True)
SQUARES = Metric("test mean squared error", False)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        model: builds it with unitary layers; the caller seeds torch's generator.
        batch: inputs and targets of a step, from a generator.
        loss: of outputs and targets.
        test: the metric of a model.
        metric: which one that is.
        steps: of training; the rates fall to zero along a cosine.
        lr: rate of AdamW for what is not unitary, for all contenders.
        recurrent: whether the unitary weights act once a time step, and so want smaller rates.
        plain: builds the model of layers of torch, where lifting the constraint would not give it; or None.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[Generator], tuple[Any, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    test: Callable[[Call], float]
    metric: Metric = ACCURACY
    steps: int
    lr: float = 1e-3
    recurrent: bool = False
    plain: Callable[[], nn.Module] | None = None


class Missing(Exception):
    """Data that is not where it should be; the message says what to put where."""


def drawn(x: Tensor, y: Tensor, size: int) -> Callable[[Generator], tuple[Tensor, Tensor]]:
    """Batches drawn with replacement from a data set."""

    def batch(generator: Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(x), (size,), generator=generator)
        return x[index], y[index]

    return batch


def accuracy(x: Tensor, y: Tensor) -> Callable[[Call], float]:
    """Percent of a data set that a model puts into the right class."""

    def test(call: Call) -> float:
        right = sum(int((call(a).argmax(-1) == b).sum()) for a, b in zip(x.split(1000), y.split(1000), strict=True))
        return 100 * right / len(x)

    return test

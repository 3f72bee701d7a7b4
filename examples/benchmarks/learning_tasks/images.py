"""Tasks on images: a shallow, a deep, an autoencoding, a convolutional and an attending network."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from common.images import load_images
from torch import Generator, Tensor, nn

from unitary_layers import GroupSort, UnitaryLinear

from .task import SQUARES, Call, Task, accuracy, drawn

WIDTH = 256


class Embedding(nn.Module):
    """A fixed map with orthonormal rows, drawn at random."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.linalg.qr(torch.randn(in_features, out_features)).Q.mT.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


@lru_cache(maxsize=1)
def fashion(root: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Fashion-MNIST, normalised and flat: images and labels for training, and for the test."""
    found = load_images("fashion", root)
    train, test = (((x.flatten(1) / 255 - 0.286) / 0.353, y) for x, y in (found["train"], found["test"]))
    return train, test


def mlp(root: Path, steps: int = 600) -> Task:
    """Fashion-MNIST by two hidden layers."""

    def model() -> nn.Module:
        hidden = [layer for _ in range(2) for layer in (UnitaryLinear(WIDTH, WIDTH), GroupSort())]
        return nn.Sequential(Embedding(784, WIDTH), *hidden, nn.Linear(WIDTH, 10))

    train, test = fashion(root)
    return Task(model=model, batch=drawn(*train, 128), test=accuracy(*test), steps=steps)

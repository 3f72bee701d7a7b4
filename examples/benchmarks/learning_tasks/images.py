"""Tasks on images: a shallow, a deep, an autoencoding, a convolutional and an attending network."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from common.images import load_digits, load_images
from einops import rearrange
from torch import Generator, Tensor, nn
from torchvision.datasets import CIFAR10

from unitary_layers import GroupSort, OrthogonalConv2d, StiefelConv2d, UnitaryLinear

from .task import SQUARES, Call, Task, accuracy, drawn

Split = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # images and labels for training, and for the test

WIDTH = 256
CODE = 16  # numbers that an image is squeezed into
CHANNELS = 64


class Embedding(nn.Module):
    """A fixed map with orthonormal rows or columns, drawn at random."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        larger, smaller = sorted((in_features, out_features), reverse=True)
        q = torch.linalg.qr(torch.randn(larger, smaller)).Q
        self.register_buffer("weight", (q if out_features > in_features else q.mT).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def hidden(width: int, layers: int) -> list[nn.Module]:
    """Unitary layers, each with a nonlinearity that keeps norms."""
    return [layer for _ in range(layers) for layer in (UnitaryLinear(width, width), GroupSort())]


@lru_cache(maxsize=1)
def fashion(root: Path) -> Split:
    """Fashion-MNIST, normalised and flat."""
    found = load_images("fashion", root)
    train, test = (((x.flatten(1) / 255 - 0.286) / 0.353, y) for x, y in (found["train"], found["test"]))
    return train, test


def digits() -> Split:
    """scikit-learn's digits, normalised and flat."""
    found = load_digits()
    train, test = (((x.flatten(1) / 16 - 0.305) / 0.376, y) for x, y in (found["train"], found["test"]))
    return train, test


def mlp(root: Path, steps: int = 600) -> Task:
    """Fashion-MNIST by two hidden layers."""

    def model() -> nn.Module:
        return nn.Sequential(Embedding(784, WIDTH), *hidden(WIDTH, 2), nn.Linear(WIDTH, 10))

    train, test = fashion(root)
    return Task(model=model, batch=drawn(*train, 128), test=accuracy(*test), steps=steps)


def deep(_root: Path, steps: int = 400) -> Task:
    """scikit-learn's digits by sixteen hidden layers."""

    def model() -> nn.Module:
        return nn.Sequential(*hidden(64, 16), nn.Linear(64, 10))

    train, test = digits()
    return Task(model=model, batch=drawn(*train, 128), test=accuracy(*test), steps=steps)


def wide(root: Path, steps: int, width: int, is_small: bool) -> Task:
    """Fashion-MNIST, or for a trial scikit-learn's digits, by one hidden weight; not in the list of tasks."""

    def model() -> nn.Module:
        return nn.Sequential(Embedding(train[0].size(1), width), *hidden(width, 1), nn.Linear(width, 10))

    train, test = digits() if is_small else fashion(root)
    return Task(model=model, batch=drawn(*train, 128), test=accuracy(*test), steps=steps)


class Autoencoder(nn.Module):
    """Two unitary layers, of whose output a few numbers are kept, and two more, which see these and zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Embedding(784, WIDTH), *hidden(WIDTH, 1), UnitaryLinear(WIDTH, WIDTH))
        self.decoder = nn.Sequential(*hidden(WIDTH, 2), nn.Linear(WIDTH, 784))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(F.pad(self.encoder(x)[:, :CODE], (0, WIDTH - CODE)))


def autoencoder(root: Path, steps: int = 400) -> Task:
    """Fashion-MNIST through a bottleneck."""
    (train, labels), (test, _) = fashion(root)
    labelled = drawn(train, labels, 128)

    def batch(generator: Generator) -> tuple[Tensor, Tensor]:
        x, _ = labelled(generator)
        return x, x

    def error(call: Call) -> float:
        return float(F.mse_loss(call(test), test))

    return Task(model=Autoencoder, batch=batch, loss=F.mse_loss, test=error, metric=SQUARES, steps=steps)


@lru_cache(maxsize=1)
def cifar(root: Path) -> Split:
    """CIFAR-10, normalised; 2,000 of the images are the test."""
    sets = [CIFAR10(str(root), train=flag, download=True) for flag in (True, False)]
    images = [(torch.from_numpy(s.data).permute(0, 3, 1, 2) / 255 - 0.47) / 0.25 for s in sets]
    labels = [torch.tensor(s.targets) for s in sets]
    return (images[0], labels[0]), (images[1][:2000], labels[1][:2000])


def convolutional(layer: Callable[[], nn.Module]) -> nn.Module:
    """Three convolutions on an 8 x 8 grid of patches."""
    patches = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, CHANNELS, 1))
    body = [part for _ in range(3) for part in (layer(), GroupSort(dim=1))]
    return nn.Sequential(patches, *body, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(CHANNELS * 16, 10))


def _conv(root: Path, layer: Callable[[], nn.Module], steps: int) -> Task:
    train, test = cifar(root)
    ordinary = partial(nn.Conv2d, CHANNELS, CHANNELS, 3, padding=1, padding_mode="circular")
    models = {"model": partial(convolutional, layer), "plain": partial(convolutional, ordinary)}
    return Task(batch=drawn(*train, 64), test=accuracy(*test), steps=steps, **models)


def conv(root: Path, steps: int = 150) -> Task:
    """CIFAR-10 by local orthogonal convolutions."""
    return _conv(root, partial(OrthogonalConv2d, CHANNELS, CHANNELS, 3, init="haar"), steps)


def pyramid(layer: Callable[..., nn.Module]) -> nn.Module:
    """Three groups of two convolutions, each of which halves the sides, with batch norm and GELU."""
    parts, inside = [], 3
    for width in (32, 64, 64):
        first, second = layer(inside, width, 3, padding="same"), layer(width, width, 3, padding="same")
        parts += [first, nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU(), second, nn.BatchNorm2d(width), nn.GELU()]
        inside = width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10))


def kernels(root: Path, steps: int = 90) -> Task:
    """7,500 images of CIFAR-10 by convolutions with orthonormal kernels, three epochs."""
    (x, y), test = cifar(root)
    models = {"model": partial(pyramid, StiefelConv2d), "plain": partial(pyramid, nn.Conv2d)}
    return Task(batch=drawn(x[:7500], y[:7500], 250), test=accuracy(*test), steps=steps, lr=1e-2, **models)


class Block(nn.Module):
    """A block of a transformer whose square maps are unitary."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query, self.key, self.value, self.out = (UnitaryLinear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(UnitaryLinear(width, width), nn.GELU(), UnitaryLinear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        maps = (self.query, self.key, self.value)
        q, k, v = (rearrange(layer(y), "b t (h c) -> b h t c", h=self.heads) for layer in maps)
        x = x + self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t c -> b t (h c)"))
        return x + self.mlp(self.norms[1](x))


class Transformer(nn.Module):
    """A vision transformer of two blocks on 4 x 4 patches of 7 x 7 pixels."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(49, width), nn.Parameter(torch.randn(16, width) / 10)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(2)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        patches = rearrange(x, "b (i h j w) -> b (i j) (h w)", i=4, j=4, h=7)
        return self.head(self.blocks(self.embed(patches) + self.places).mean(1))


def vit(root: Path, steps: int = 300) -> Task:
    """Fashion-MNIST by a small vision transformer."""
    train, test = fashion(root)
    return Task(model=Transformer, batch=drawn(*train, 64), test=accuracy(*test), steps=steps)

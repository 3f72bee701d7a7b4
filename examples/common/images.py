"""Small images whole in memory: scikit-learn's digits, and MNIST, FashionMNIST and CIFAR-10 through torchvision."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange

DIGITS_SPLIT_SEED = 0  # which digits are held out, whatever the seed of the run
IMAGE_SETS = ("digits", "mnist", "fashion")  # grey
ALL_SETS = (*IMAGE_SETS, "cifar10")


def load_digits() -> dict[str, object]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels (0 to 16), split 80 / 20; arguments for `PixelSequence`."""
    from sklearn.datasets import load_digits as load

    data = load()
    images, labels = torch.from_numpy(data.images).float(), torch.from_numpy(data.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(DIGITS_SPLIT_SEED))
    train, test = order.split((len(images) * 4 // 5, len(images) - len(images) * 4 // 5))
    return {
        "train": (images[train], labels[train]),
        "test": (images[test], labels[test]),
        "largest": 16,
        "name": "digits",
    }


def load_images(name: str, root: str | Path) -> dict[str, object]:
    """Images with their labels; arguments for `PixelSequence`, where they are grey.

    Digits, MNIST or FashionMNIST (28 x 28), images `(n, h, w)`, or CIFAR-10, `(n, 3, 32, 32)`; all but the first are
    downloaded to `root` if not there.
    """
    if name not in ALL_SETS:
        raise ValueError(f"image set must be one of {ALL_SETS}, got {name!r}")
    if name == "digits":
        return load_digits()
    from torchvision import datasets

    source = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    parts = []
    for is_train in (True, False):
        part = source(str(root), train=is_train, download=True)
        images = torch.as_tensor(part.data)
        if images.dim() == 4:
            images = rearrange(images, "n h w c -> n c h w").contiguous()
        parts.append((images, torch.as_tensor(part.targets)))
    return {"train": parts[0], "test": parts[1], "name": name}

"""Image sets for `PixelSequence`: scikit-learn's digits, and MNIST and FashionMNIST through torchvision."""

from __future__ import annotations

from pathlib import Path

import torch

DIGITS_SPLIT_SEED = 0  # which digits are held out, whatever the seed of the run
IMAGE_SETS = ("digits", "mnist", "fashion")


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
    """Arguments for `PixelSequence`: digits, or MNIST or FashionMNIST (28 x 28), downloaded to `root` if not there."""
    if name not in IMAGE_SETS:
        raise ValueError(f"image set must be one of {IMAGE_SETS}, got {name!r}")
    if name == "digits":
        return load_digits()
    from torchvision import datasets

    source = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}[name]
    train, test = (source(str(root), train=flag, download=True) for flag in (True, False))
    return {"train": (train.data, train.targets), "test": (test.data, test.targets), "name": name}

"""Image sets and their loaders, by timm: digits, MNIST, Fashion-MNIST, CIFAR-10 and folders of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, RandomCrop

from common.images import DIGITS_SPLIT_SEED
from unitary_layers.models.pretrained import IMAGES


@dataclass(frozen=True)
class ImageSet:
    """What a loader and a model need to know of a set.

    Attributes:
        source: name of timm's dataset; None for scikit-learn's digits.
        size: channels, height and width.
        mean, std: of each channel, of pixels in [0, 1].
        flips: whether a mirror image shows the same.
        classes: their number; None for a folder, whose subfolders say it.
    """

    source: str | None
    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool = False
    classes: int | None = 10


def known_set(name: str, source: str | None, **more: bool) -> ImageSet:
    """A set on which the package may have trained weights; it knows the size and the numbers that standardise them."""
    images = IMAGES[name]
    return ImageSet(source, images["input_size"], images["mean"], images["std"], **more)


SETS = {
    "digits": known_set("digits", None),
    "mnist": known_set("mnist", "torch/mnist"),
    "fashion": known_set("fashion", "torch/fashion_mnist"),
    "cifar10": known_set("cifar10", "torch/cifar10", flips=True),
    "folder": ImageSet("", (3, 224, 224), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, True, None),
}


class Digits(Dataset):
    """scikit-learn's 1,797 digits of 8 x 8 pixels as grey images, split 80 / 20.

    Attributes:
        transform: of an image; set by timm's loader.
    """

    def __init__(self, train: bool) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(DIGITS_SPLIT_SEED))
        cut = len(order) * 4 // 5
        chosen = (order[:cut] if train else order[cut:]).tolist()
        pixels = (data.images * (255 / 16)).round().astype("uint8")
        self.samples = [(Image.fromarray(pixels[i]), int(data.target[i])) for i in chosen]
        self.transform: Callable | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image, label = self.samples[index]
        return (image if self.transform is None else self.transform(image)), label


def make_dataset(name: str, root: Path, train: bool) -> Dataset:
    """A split of a set: torchvision's sets are downloaded to `root` if not there, "folder" is `root` itself."""
    if name not in SETS:
        raise ValueError(f"image set must be one of {tuple(SETS)}, got {name!r}")
    if name == "digits":
        return Digits(train)
    split = "train" if train else "validation"
    return create_dataset(SETS[name].source, root=str(root), split=split, is_training=train, download=name != "folder")


def make_loader(
    name: str,
    dataset: Dataset,
    *,
    train: bool,
    batch_size: int,
    size: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scale: float = 1.0,
    shift: int | None = None,
    workers: int = 0,
) -> DataLoader:
    """timm's loader on the CPU.

    A training image is moved by up to `shift` pixels in both directions, mirrored at its borders, then cropped to
    `scale` or more of its area and mirrored where that makes sense; without all of that it is left alone. The last
    incomplete batch of training is dropped.
    """
    loader = create_loader(
        dataset,
        input_size=size,
        batch_size=batch_size,
        is_training=train,
        no_aug=scale >= 1 and not SETS[name].flips,
        scale=(scale, 1.0),
        ratio=(1.0, 1.0) if scale >= 1 else (3 / 4, 4 / 3),
        hflip=0.5 if SETS[name].flips else 0.0,
        color_jitter=0.0,
        interpolation="bilinear",
        crop_pct=1.0,
        mean=mean,
        std=std,
        num_workers=workers,
        persistent_workers=False,  # new workers take their seeds from the epoch, which makes it repeatable
        use_prefetcher=False,
        device=torch.device("cpu"),
    )
    if shift:
        dataset.transform = Compose([RandomCrop(size[1:], shift, padding_mode="reflect"), dataset.transform])
    return loader

"""Image sets held in memory: batches without a decoder, mirrored and moved as a whole."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from common.image_data import SETS, make_dataset
from common.image_training import check_options, number_of_classes
from common.pixels import moved


class MemoryLoader:
    """Batches of pixels between 0 and 1.

    In training they are shuffled by torch's generator, and the last incomplete one is dropped.

    Args:
        images: bytes ``(n, c, h, w)``.
        targets: ``(n,)``.
        batch_size: images of a batch.
        train: whether to shuffle, mirror and move.
        flips: whether a mirror image shows the same.
        shift: pixels by which a training image is moved at most, along each side; black comes in.
    """

    def __init__(
        self, images: Tensor, targets: Tensor, batch_size: int, *, train: bool, flips: bool = False, shift: int = 0
    ) -> None:
        self.images, self.targets, self.batch_size, self.train = images, targets, batch_size, train
        self.flips, self.shift = flips, shift

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole if self.train else whole + bool(rest)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.images)
        order = torch.randperm(count) if self.train else torch.arange(count)
        for rows in order.split(self.batch_size)[: len(self)]:
            images = self.images[rows]
            yield (self.varied(images) if self.train else images).float() / 255, self.targets[rows]

    def varied(self, images: Tensor) -> Tensor:
        """The images ``(b, c, h, w)``, each at a place of its own, and half of them mirrored."""
        if self.shift:
            images = moved(images, torch.randint(2 * self.shift + 1, (len(images), 2)), self.shift)
        if self.flips:
            mirrored = torch.rand(len(images)) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return images


def held(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """All images of a set as bytes ``(n, c, h, w)``, and their classes ``(n,)``."""
    samples = [dataset[i] for i in range(len(dataset))]
    return torch.stack([pil_to_tensor(image) for image, _ in samples]), torch.tensor([label for _, label in samples])


def memory_loaders(args: argparse.Namespace) -> tuple[MemoryLoader, MemoryLoader, int]:
    """The loaders of training and test images, all of one size, and the number of classes."""
    check_options(args)
    if args.scale < 1 or args.img_size is not None:
        raise ValueError("--scale and --img-size need images that are decoded one by one, and these are held in memory")
    train, test = (make_dataset(args.images, args.root, flag) for flag in (True, False))
    if len(train) < args.batch_size:
        raise ValueError(f"expected at least --batch-size {args.batch_size} training images, got {len(train)}")
    classes, varied = number_of_classes(args, train, test), {"flips": SETS[args.images].flips, "shift": args.shift or 0}
    train_loader = MemoryLoader(*held(train), args.batch_size, train=True, **varied)
    return train_loader, MemoryLoader(*held(test), args.batch_size, train=False), classes

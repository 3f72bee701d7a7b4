"""Small images held in memory, and runs by epochs over them."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from tqdm import tqdm

from common.log import Row
from common.resumable import EpochRun
from common.tasks import generator_for


def moved(images: Tensor, places: Tensor, shift: int, blank: float = 0) -> Tensor:
    """Images `(b, c, h, w)`, each cut out of a frame of `shift` pixels around it.

    Args:
        images: to be moved.
        places: from where each is cut `(b, 2)`: pixels from the top and the left of the frame, from 0 to 2 `shift`.
        shift: pixels by which an image is moved at most.
        blank: what is in the frame.
    """
    height, width = images.shape[2:]
    down, right = places.T[:, :, None]
    framed = F.pad(images, (shift,) * 4, value=blank)
    rows, columns = (down + torch.arange(height))[:, :, None], (right + torch.arange(width))[:, None]
    return framed[torch.arange(len(images))[:, None, None], :, rows, columns].movedim(-1, 1)


class Pixels:
    """Training and test images `(count, c, h, w)`, each channel standardised, with their labels.

    Args:
        source: as `load_images` gives it.
        used: how many of the training images; all if None.
    """

    def __init__(self, source: dict[str, Any], used: int | None = None) -> None:
        scale = source.get("largest", 255)
        (images, labels), (test_images, test_labels) = source["train"], source["test"]
        images, test_images = images / scale, test_images / scale
        if images.dim() == 3:
            images, test_images = images[:, None], test_images[:, None]
        mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
        self.train = ((images[:used] - mean) / std, labels[:used])
        self.test = ((test_images - mean) / std, test_labels)

    def batch(self, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Some training images and their labels; a subclass may draw how it varies them."""
        return self.train[0][index], self.train[1][index]

    def shown(self, images: Tensor) -> Tensor:
        """Images as the model sees them."""
        return images


class PixelsRun(EpochRun):
    """A run by epochs over images in memory; a subclass makes model, optimiser and scheduler.

    Attributes:
        data: the images.
        clip: largest norm of the gradient; None for any.
    """

    clip: float | None = None

    def __init__(self, args: Any, data: Pixels) -> None:
        super().__init__(args)
        self.data = data
        self.per_epoch = len(data.train[0]) // args.batch_size

    def train_epoch(self) -> Row:
        """One pass over the training images; mean loss and accuracy, and no more once the loss is no number."""
        self.model.train()
        generator = generator_for(self.args.seed, self.epoch)
        order = torch.randperm(len(self.data.train[0]), generator=generator)[: self.per_epoch * self.args.batch_size]
        sums = torch.zeros(2)
        label = f"{self.title}, epoch {self.epoch + 1}/{self.args.epochs}"
        bar = tqdm(order.split(self.args.batch_size), desc=label, leave=False, disable=not sys.stderr.isatty())
        for index in bar:
            images, labels = self.data.batch(index, generator)
            outputs = self.model(images)
            loss = F.cross_entropy(outputs, labels)
            sums += torch.stack((loss.detach(), (outputs.argmax(1) == labels).float().mean()))
            if not torch.isfinite(loss):
                break
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.scheduler.step()
            self.step += 1
            bar.set_postfix_str(f"loss {loss.item():.3f}")
        return dict(zip(("loss", "accuracy"), (sums / self.per_epoch).tolist(), strict=True))

    @torch.no_grad()
    def evaluate(self) -> Row:
        """Mean loss and accuracy over the test images."""
        self.model.eval()
        images, labels = self.data.test
        outputs = torch.cat([self.model(self.data.shown(part)) for part in images.split(100)])
        accuracy = (outputs.argmax(1) == labels).float().mean().item()
        return {"test_loss": F.cross_entropy(outputs, labels).item(), "test_accuracy": accuracy}

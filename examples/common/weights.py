"""Weights that ship: a file from a finished run, and how many images it names right."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from common.image_data import make_dataset
from unitary_layers.layers.base.states import state_names
from unitary_layers.training import unitary_weights

LARGEST = 5e6  # bytes of a file
SAMPLES = Path(__file__).parents[2] / "tests" / "data"
LICENCES = {
    "digits": "scikit-learn's digits, CC BY 4.0",
    "mnist": "MNIST, CC BY-SA 3.0",
    "fashion": "Fashion-MNIST, MIT",
    "cifar10": "CIFAR-10, no licence stated",
}  # what weights may be trained on
Images = Iterable[tuple[Image.Image, int]]


def set_of(tag: str) -> str:
    """The images that weights with a tag were trained on; behind it may be the side of the images."""
    return tag.partition("_")[0]


def packed(model: nn.Module) -> dict[str, Tensor]:
    """What a file of weights holds: matrices and kernels in float16, vectors and counts as they are.

    Raises:
        ValueError: for a number that float16 does not hold.
    """
    states = {name for weight in unitary_weights(model) for name in state_names(weight.name)}
    state = {name: value for name, value in model.state_dict().items() if name not in states}
    state = {n: v.half() if v.is_floating_point() and v.ndim > 1 else v for n, v in state.items()}
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"expected numbers that float16 holds, got larger ones in {name}")
    return state


def file_of(name: str) -> Path:
    """Where the weights of a model with a tag are."""
    return Path(timm.get_pretrained_cfg(name).file)


def write_weights(name: str, run: Path) -> Path:
    """The file of a model with a tag, from the folder of a finished run.

    Raises:
        ValueError: for one of more than 5 MB.
    """
    model = timm.create_model(name)
    model.load_state_dict(load_file(run / "model.safetensors"))
    state, path = packed(model), file_of(name)
    if (size := sum(v.numel() * v.element_size() for v in state.values())) > LARGEST:
        raise ValueError(f"expected at most {LARGEST / 1e6:.0f} MB, got {size / 1e6:.1f} MB for {name}")
    path.parent.mkdir(exist_ok=True)
    save_file(state, path, metadata={"format": "pt"})
    return path


def sample_of(images: str) -> list[tuple[Image.Image, int]] | None:
    """The first 500 test images of a set that may be passed on, or all 360 digits; None for another set."""
    if images == "digits":
        return list(make_dataset(images, SAMPLES, train=False))  # comes with scikit-learn
    if not (path := SAMPLES / f"{images}.npz").exists():
        return None
    with np.load(path) as file:
        return [
            (Image.fromarray(pixels), int(label)) for pixels, label in zip(file["images"], file["labels"], strict=True)
        ]


@torch.no_grad()
def count_right(model: nn.Module, images: Images, batch: int = 250) -> tuple[int, int]:
    """How many images a model names right, and how many there are, as timm prepares them for it."""
    transform = create_transform(**resolve_data_config({}, model=model))
    right = total = 0
    pairs = [(transform(image), label) for image, label in images]
    for start in range(0, len(pairs), batch):
        inputs, labels = zip(*pairs[start : start + batch], strict=True)
        right += int((model(torch.stack(inputs)).argmax(1) == torch.tensor(labels)).sum())
        total += len(labels)
    return right, total


def measure_weights(name: str, root: Path) -> str:
    """The row of a card for a model with a tag: accuracy on all test images and on the sample, size, images."""
    tag = name.partition(".")[2]
    images, model = set_of(tag), timm.create_model(name, pretrained=True).eval()
    right, total = count_right(model, make_dataset(images, root, train=False))
    sample = sample_of(images)
    found = "not shipped" if sample is None else "{} of {}".format(*count_right(model, sample))
    size = file_of(name).stat().st_size / 1e6
    return f"{100 * right / total:.2f} % of {total:,} | {found} | {size:.2f} MB | {LICENCES[images]}"

"""Trained weights that come with the package, and what timm is told of them: a file for each set of images.

They are files ``weights/NAME.TAG.safetensors`` of the package, so ``timm.create_model(name, pretrained=True)`` needs no
network. ``examples/model_card.py`` makes one from a finished run.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

# Note [Weights in half precision]
# A file holds matrices and kernels in float16, and vectors, which are few, in float32. A phase of a state space layer
# acts once in each of hundreds of steps, and so would its rounding. A unitary matrix that was rounded is unitary no
# more: loading moves it to the nearest unitary matrix, which is about as far from the trained one as the rounding was.
# What a rule keeps for its next step is not in the file.

WEIGHTS = Path(__file__).parents[1] / "weights"
IMAGES: dict[str, dict[str, Any]] = {
    "digits": {"input_size": (1, 8, 8), "mean": (0.305,), "std": (0.376,)},
    "mnist": {"input_size": (1, 28, 28), "mean": (0.1307,), "std": (0.3081,)},
    "fashion": {"input_size": (1, 28, 28), "mean": (0.2860,), "std": (0.3530,)},
    "cifar10": {
        "input_size": (3, 32, 32),
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
    },
}  # sets of images with ten classes, standardised by these numbers


def images_of(tag: str, reduction: int) -> dict[str, Any]:
    """What timm knows of the images of a tag, for a model without weights.

    Args:
        tag: a set of :data:`IMAGES`, with the side of the images behind it where it is another: ``"mnist_14"``.
        reduction: how many times smaller than the image the features of the model are.
    """
    images, _, side = tag.partition("_")
    channels, *size = IMAGES[images]["input_size"]
    height, width = (int(side),) * 2 if side else size
    return {
        **IMAGES[images],
        "num_classes": 10,
        "input_size": (channels, height, width),
        "pool_size": (height // reduction, width // reduction),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "license": "apache-2.0",
    }


def trained(name: str, tags: Iterable[str], reduction: int, **common: Any) -> dict[str, Any]:
    """What timm knows of a model with weights, for ``generate_default_cfgs``: an entry for each tag, the default first.

    Args:
        name: of the model.
        tags: as for :func:`images_of`.
        reduction: the same.
        common: what all of them share.
    """
    files = {f"{name}.{tag}": {"file": str(WEIGHTS / f"{name}.{tag}.safetensors")} for tag in tags}
    return {entry: images_of(entry.partition(".")[2], reduction) | file | common for entry, file in files.items()}


def with_own_stem(
    state_dict: dict[str, Tensor], model: nn.Module, *, beside: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Trained weights for a model of images with other channels: its own stem in the place of one that does not fit.

    timm adapts an ``nn.Conv2d`` by repeating and averaging its kernel, and an orthogonal one would not be orthogonal
    any more.

    Args:
        state_dict: of the trained model.
        model: with a module ``stem``.
        beside: names of modules whose shape follows that of the stem.
    """
    prefixes = tuple(f"{name}." for name in ("stem", *beside))
    own = {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)}
    fits = all(name not in state_dict or state_dict[name].shape == value.shape for name, value in own.items())
    return state_dict if fits else state_dict | own

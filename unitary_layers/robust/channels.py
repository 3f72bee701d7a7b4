"""Channels of an input and their pairs, whatever dimension they are in."""

from typing import Protocol

import torch
from torch import Tensor


class OverChannels(Protocol):
    """A module that acts on channels.

    Attributes:
        dim: the dimension of the channels.
    """

    dim: int


class OfFeatures(OverChannels, Protocol):
    """A module with parameters for so many channels.

    Attributes:
        num_features: their number.
    """

    num_features: int


def channels_of(module: OverChannels, input: Tensor) -> int:
    """The number of channels of an input that has them.

    Raises:
        ValueError: for an input without that dimension.
    """
    if not -input.ndim <= module.dim < input.ndim:
        name, shape = type(module).__name__, tuple(input.shape)
        raise ValueError(f"{name}: expected an input with a dimension {module.dim}, got shape {shape}")
    return input.size(module.dim)


def check_features(module: OfFeatures, input: Tensor) -> None:
    """Refuses an input with another number of channels than a module has parameters for."""
    if channels_of(module, input) != module.num_features:
        name, shape = type(module).__name__, tuple(input.shape)
        raise ValueError(
            f"{name}: expected {module.num_features} channels in dimension {module.dim}, got shape {shape}"
        )


def to_pairs(module: OfFeatures, input: Tensor) -> tuple[Tensor, Tensor]:
    """First and second channels of all pairs of neighbours, ``(..., num_features / 2)``: channels last."""
    check_features(module, input)
    first, second = input.movedim(module.dim, -1).unflatten(-1, (-1, 2)).unbind(-1)
    return first, second


def together(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """The inverse of :func:`to_pairs`."""
    return torch.stack([first, second], -1).flatten(-2).movedim(-1, dim)

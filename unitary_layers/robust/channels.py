"""Channels of an input and their pairs, whatever dimension they are in."""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from ..layers.base.inputs import as_size
from ..layers.base.symbolic import OneOperation


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


class OnPairs(OneOperation):
    """A layer with an angle for each pair of neighbouring channels.

    Args:
        num_features: channels, an even number.
        dim: their dimension.
        device: of the angles.
        dtype: of the angles.

    Attributes:
        angle: radians, one for each pair ``(num_features / 2,)``.

    Raises:
        ValueError: for an odd number of channels.
    """

    def __init__(
        self,
        num_features: int,
        dim: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.dim = as_size("num_features", num_features), dim
        if num_features % 2:
            raise ValueError(f"expected an even number of channels, got {num_features}")
        self.angle = nn.Parameter(torch.empty(num_features // 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the angles to pi / 2."""
        nn.init.constant_(self.angle, math.pi / 2)

    def extra_repr(self) -> str:
        return f"{self.num_features}" + (f", dim={self.dim}" if self.dim != 1 else "")

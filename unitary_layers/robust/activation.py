"""Activations whose Jacobian is orthogonal wherever it exists: gradients keep their norm."""

import torch
from torch import Tensor
from torch.fx import Proxy

from ..layers.base.symbolic import OneOperation
from .channels import OnPairs, channels_of, to_pairs, together


class HouseholderActivation(OnPairs):
    r"""Reflects each pair of neighbouring channels at a line, if it lies on one side of it; the angle is learnt.

    ``z - 2 n relu(n . z)`` with ``n = (sin(angle / 2), -cos(angle / 2))``: continuous, orthogonal on both sides. It
    starts at the angle pi / 2, where it sorts the pair, as :class:`unitary_layers.GroupSort` does.

    Source: S. Singla, S. Singla, S. Feizi, "Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100", ICLR 2022,
    arXiv 2108.04062, section 4.

    Args:
        num_features: channels, an even number.
        dim: their dimension.
        device: of the angles.
        dtype: of the angles.

    Shape:
        Input and output ``(batch, num_features, ...)`` for the default ``dim=1``.

    Attributes:
        angle: radians, one for each pair ``(num_features / 2,)``.

    Raises:
        ValueError: for an odd number of channels, and in ``forward`` for an input with another number.
    """

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        a, b = to_pairs(self, input)
        sin, cos = (part.to(input.dtype) for part in ((self.angle / 2).sin(), (self.angle / 2).cos()))
        twice = 2 * torch.relu(a * sin - b * cos)
        return together(a - twice * sin, b + twice * cos, self.dim)


class AbsActivation(OneOperation):
    r"""The absolute value of the first channels; the others stay as they are.

    Source: K. Hu, H. Hu, M. Fredrikson, "LipNeXt", arXiv 2601.18513 (there beta-Abs).

    Args:
        share: how many of the channels, from 0 to 1.
        dim: their dimension.

    Shape:
        Input and output ``(batch, channels, ...)`` for the default ``dim=1``.

    Raises:
        ValueError: for a share outside of [0, 1].
    """

    def __init__(self, share: float = 1.0, dim: int = 1) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"expected a share from 0 to 1, got {share!r}")
        self.share, self.dim = share, dim

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        if self.share == 1:
            return input.abs()
        channels = channels_of(self, input)
        first = round(self.share * channels)
        bent, kept = input.split([first, channels - first], self.dim)
        return torch.cat([bent.abs(), kept], self.dim)

    def extra_repr(self) -> str:
        return f"share={self.share}" + (f", dim={self.dim}" if self.dim != 1 else "")

"""Neighbouring pixels meet by shifts of channels, not by kernels."""

import torch
from torch import Tensor
from torch.fx import Proxy

from ..layers.base.symbolic import OneOperation
from .channels import channels_of


class SpatialShift(OneOperation):
    r"""Shifts some of the channels by a pixel, each way along each side, periodically: a permutation of the numbers.

    Between two orthogonal matrices that mix the channels of each pixel it does what an orthogonal convolution does, at
    the cost of a 1 x 1 one.

    Source: K. Hu, H. Hu, M. Fredrikson, "LipNeXt", arXiv 2601.18513.

    Args:
        share: of the channels that go each way: at most ``1 / (2 sides)``.
        dim: the channels' dimension; the first is the batch, all others are sides.

    Shape:
        Input and output ``(b, channels, ...)`` for the default ``dim=1``.

    Raises:
        ValueError: for a share that is not in (0, 1/2], and in ``forward`` for one that is too large for the sides.
    """

    def __init__(self, share: float = 0.125, dim: int = 1) -> None:
        super().__init__()
        if not 0 < share <= 0.5:
            raise ValueError(f"expected a share above 0 and at most 1/2, got {share!r}")
        self.share, self.dim = share, dim

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        channels, dim = channels_of(self, input), self.dim % input.ndim
        sides = [side for side in range(1, input.ndim) if side != dim]
        moved = int(self.share * channels)
        if 2 * len(sides) * moved > channels:
            raise ValueError(
                f"expected a share of at most 1 / {2 * len(sides)} for {len(sides)} sides, got {self.share}"
            )
        *ways, kept = input.split([moved] * (2 * len(sides)) + [channels - 2 * len(sides) * moved], dim)
        shifted = [way.roll(1 - 2 * (i % 2), sides[i // 2]) for i, way in enumerate(ways)]
        return torch.cat([*shifted, kept], dim)

    def extra_repr(self) -> str:
        return f"share={self.share}" + (f", dim={self.dim}" if self.dim != 1 else "")

"""Poolings that no distance survives enlarged: each output is a distance, and a distance is 1-Lipschitz.

Source: S. Singla, S. Feizi, "Improved techniques for deterministic l2 robustness", NeurIPS 2022, arXiv 2211.08453,
section 6, for the idea and for the projection pooling.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from .channels import OnPairs, to_pairs


class ProjectionPool(OnPairs):
    r"""Of each pair of neighbouring channels the signed distance from a sector: half of the channels are left.

    The sector is that of all points of the plane whose angle from the first axis is at most ``angle / 2``. Its points
    have negative distances, those of its border the distance 0. So the gradient of each output has norm 1 wherever it
    exists. An angle of pi gives minus the first channel; 0 the distance from a half-line, which from behind is the norm
    of the pair.

    Source: Singla, Feizi, arXiv 2211.08453, section 6.

    Args:
        num_features: channels, an even number.
        dim: their dimension.
        device: of the angles.
        dtype: of the angles.

    Shape:
        Input ``(batch, num_features, ...)`` for the default ``dim=1``, output ``(batch, num_features / 2, ...)``.

    Attributes:
        angle: radians, one for each pair ``(num_features / 2,)``, used as the nearest number in [0, pi].

    Raises:
        ValueError: for an odd number of channels, and in ``forward`` for an input with another number.
    """

    def reset_parameters(self) -> None:
        """Draws the angles uniformly from [0, pi]."""
        nn.init.uniform_(self.angle, 0, math.pi)

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        a, b = to_pairs(self, input)
        half = self.angle.clamp(0, math.pi) / 2
        sin, cos = half.sin().to(input.dtype), half.cos().to(input.dtype)
        across, along = b.abs() * cos - a * sin, a * cos + b.abs() * sin
        norm = torch.linalg.vector_norm(torch.stack([a, b]), dim=0)  # its gradient at 0 is 0
        return across.where(along >= 0, norm).movedim(-1, self.dim)


class NormPool(nn.Module):
    r"""The Euclidean norm of each channel over all positions: 1-Lipschitz, where a mean would lose more.

    Source: K. Hu, H. Hu, M. Fredrikson, "LipNeXt", arXiv 2601.18513 (there l2 pooling).

    Args:
        dim: the dimensions of the positions.

    Shape:
        Input ``(batch, channels, h, w)`` for the default ``dim=(-2, -1)``, output ``(batch, channels)``.
    """

    def __init__(self, dim: int | Sequence[int] = (-2, -1)) -> None:
        super().__init__()
        self.dim = (dim,) if isinstance(dim, int) else tuple(dim)

    def forward(self, input: Tensor) -> Tensor:
        return torch.linalg.vector_norm(input, dim=self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"

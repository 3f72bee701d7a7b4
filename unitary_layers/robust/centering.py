"""What is left of the normalisations in a 1-Lipschitz network: the mean goes, the division does not come.

Source: T. Boissin et al., "An adaptive orthogonal convolution scheme for efficient and flexible CNN architectures",
ICML 2025, arXiv 2501.07930, whose library orthogonium has both layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..layers.base.inputs import as_size
from ..layers.base.symbolic import OneOperation
from .channels import check_features

# Note [Centring]
# Subtracting the mean of some entries is an orthogonal projection, so it is 1-Lipschitz. Over the features of one
# sample it is one map, the same in training and evaluation. Over a batch it is a projection of the batch, in which a
# sample moves with the others; so in evaluation a running mean takes its place, a constant, and the layer is a
# translation of each sample, whatever the others are. Dividing by a deviation, as norms do, has no bound.


class LayerCentering(OneOperation):
    r"""Subtracts the mean over the last dimensions, and adds a bias: ``nn.LayerNorm`` without its division.

    See Note [Centring].

    Args:
        normalized_shape: the last dimensions.
        bias: whether to add one, of that shape.
        device: of the bias.
        dtype: of the bias.

    Shape:
        Input and output ``(..., *normalized_shape)``.

    Raises:
        ValueError: in ``forward``, for an input that does not end in that shape.
    """

    bias: Tensor | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sides = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape = tuple(as_size("normalized_shape", side) for side in sides)
        new = nn.Parameter(torch.zeros(self.normalized_shape, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", new)

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        sides = len(self.normalized_shape)
        if tuple(input.shape[-sides:]) != self.normalized_shape:
            raise ValueError(
                f"LayerCentering: expected an input (..., *{self.normalized_shape}), got shape {tuple(input.shape)}"
            )
        centred = input - input.mean(dim=tuple(range(-sides, 0)), keepdim=True)
        return centred if self.bias is None else centred + self.bias.to(input.dtype)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, bias={self.bias is not None}"


class BatchCentering(OneOperation):
    r"""Subtracts the mean of each channel, and adds a bias: ``nn.BatchNorm1d`` to ``3d`` without their division.

    In training the mean is that of the batch, over all positions; in evaluation the running mean, a constant. See
    Note [Centring].

    Args:
        num_features: channels.
        momentum: of the running mean; None for the mean of all batches.
        bias: whether to add one to each channel.
        device: of bias and mean.
        dtype: of bias and mean.

    Shape:
        Input and output ``(b, num_features, ...)``.

    Attributes:
        bias: ``(num_features,)`` or None.
        running_mean: ``(num_features,)``.

    Raises:
        ValueError: in ``forward``, for another number of channels.
    """

    bias: Tensor | None
    running_mean: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        momentum: float | None = 0.1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.dim, self.momentum = as_size("num_features", num_features), 1, momentum
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features, **dd)) if bias else None)
        self.register_buffer("running_mean", torch.zeros(num_features, **dd))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        check_features(self, input)
        mean = self.running_mean
        if self.training and input.numel():  # of no rows there is no mean
            mean = input.to(mean.dtype).mean(dim=[d for d in range(input.ndim) if d != 1])
            with torch.no_grad():
                self.num_batches_tracked += 1
                part = 1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
                self.running_mean += part * (mean - self.running_mean)
        shift = mean if self.bias is None else mean - self.bias
        return input - shift.to(input.dtype).view(-1, *[1] * (input.ndim - 2))

    def extra_repr(self) -> str:
        return f"{self.num_features}, momentum={self.momentum}, bias={self.bias is not None}"

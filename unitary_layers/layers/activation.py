"""Nonlinearities that keep norms, or nearly so."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..linalg.check import check_dense
from .base.inputs import as_dtype, as_real, as_size
from .base.symbolic import OneOperation


class ModReLU(nn.Module):
    r"""``modReLU(z) = z / |z| * relu(|z| + b)``, of real or complex z: moves the modulus, keeps the sign or phase.

    The bias ``b`` is real, one a feature, and starts at zero, where modReLU is the identity. It is 1-Lipschitz while
    b <= 0.

    Source: M. Arjovsky, A. Shah, Y. Bengio, "Unitary evolution recurrent neural networks", ICML 2016,
    arXiv 1511.06464, eq. 8.

    Args:
        num_features: size of the last dimension.
        device: of the bias.
        dtype: of the input; a complex one gives a real bias of the same precision.

    Shape:
        Input and output ``(..., num_features)``.
    """

    def __init__(
        self, num_features: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.num_features = as_size("num_features", num_features)
        self.bias = nn.Parameter(torch.empty(self.num_features, device=device, dtype=as_dtype(dtype).to_real()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the bias to zero."""
        nn.init.zeros_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ModReLU":
        super()._apply(lambda t: as_real(fn(t), t), recurse)  # type: ignore[no-untyped-call]  # torch's has none
        return self

    def forward(self, input: Tensor) -> Tensor:
        return torch.sgn(input) * torch.relu(input.abs() + self.bias.expand_as(input))

    def extra_repr(self) -> str:
        return f"{self.num_features}"


class GroupSort(OneOperation):
    r"""Sorts the values within groups of neighbouring channels: a permutation of each input, so it keeps every norm.

    It is 1-Lipschitz and gradient norm preserving; a group of 2 gives (min, max), also known as MaxMin.

    Source: C. Anil, J. Lucas, R. Grosse, "Sorting out Lipschitz function approximation", ICML 2019, arXiv 1811.05381.

    Args:
        group_size: channels a group; must divide the number of channels.
        dim: the channels' dimension; -1 for sequences ``(batch, time, channels)``.

    Shape:
        Input and output ``(batch, channels, ...)`` for the default ``dim=1``.

    Raises:
        TypeError, ValueError: if ``group_size`` or ``dim`` is not an integer, ``group_size`` below 1, or (in
            ``forward``) the input has no such dimension, or one that ``group_size`` does not divide.
    """

    def __init__(self, group_size: int = 2, dim: int = 1) -> None:
        super().__init__()
        self.group_size = as_size("group_size", group_size)
        if not isinstance(dim, int):
            raise TypeError(f"expected dim to be an integer, got {dim!r}")
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        check_dense("input of GroupSort", input)
        if not -input.ndim <= self.dim < input.ndim:
            raise ValueError(f"expected an input with a dimension {self.dim}, got shape {tuple(input.shape)}")
        channels = input.size(self.dim)
        if channels % self.group_size:
            raise ValueError(f"expected channels in groups of {self.group_size}, got {channels} channels")
        # The sorted dimension is last, whatever dim is: it stays where it is for negative dims too.
        groups = input.movedim(self.dim, -1).unflatten(-1, (-1, self.group_size))
        return groups.sort(dim=-1).values.flatten(-2).movedim(-1, self.dim)

    def extra_repr(self) -> str:
        return ", ".join(
            [f"group_size={self.group_size}"] + ([f"dim={self.dim}"] if self.dim != 1 else []),
        )


def make_activation(nonlinearity: Any, num_features: int, **dd: Any) -> nn.Module:
    """The module for "tanh", "relu", "modrelu" or "identity"; of a module, a copy."""
    if isinstance(nonlinearity, nn.Module):
        return copy.deepcopy(nonlinearity)
    if nonlinearity == "modrelu":
        return ModReLU(num_features, **dd)
    return {"tanh": nn.Tanh, "relu": nn.ReLU, "identity": nn.Identity}[nonlinearity]()

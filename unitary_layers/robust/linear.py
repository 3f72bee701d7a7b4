"""A last layer each of whose outputs is 1-Lipschitz."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.base.inputs import as_size


class UnitNormLinear(nn.Module):
    r"""``nn.Linear`` whose rows are divided by their norms: every output moves at most as far as the input.

    As the head of a classifier it gives logits in units of distance: two of them differ by at most ``|w_i - w_j|``, at
    most 2, times the distance of the inputs. See :func:`certified_radius`. Unlike those of a unitary weight the rows
    need not be orthogonal, so classes may be as near to each other as they are.

    Source: S. Singla, S. Singla, S. Feizi, "Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100", ICLR 2022,
    arXiv 2108.04062, section 3 (last layer normalisation).

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: whether to add a bias.
        device: of the parameters.
        dtype: real floating point type.

    Shape:
        Input ``(..., in_features)``, output ``(..., out_features)``.

    Attributes:
        weight: rows of any length ``(out_features, in_features)``; a state dict of ``nn.Linear`` loads.
        bias: ``(out_features,)`` or None.

    Example:
        >>> from unitary_layers.robust import certified_radius
        >>> head = UnitNormLinear(16, 10)
        >>> certified_radius(head(torch.randn(4, 16)), head).shape
        torch.Size([4])
    """

    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_features = as_size("in_features", in_features)
        self.out_features = as_size("out_features", out_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **dd))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, **dd)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws rows of random directions, with norms near 1, and sets the bias to zero."""
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.in_features))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def matrix(self) -> Tensor:
        """The rows of norm one ``(out_features, in_features)``, differentiable."""
        return F.normalize(self.weight, dim=1)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.matrix, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

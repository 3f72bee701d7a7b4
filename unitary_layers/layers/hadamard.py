"""A linear layer of signs and Hadamard matrices: exactly orthogonal, one bit a feature and stage."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..projunn.rule import UpdateRule
from .base.inputs import as_size, check_input
from .base.signs import SignedModule, signed_transform


class HadamardLinear(SignedModule):
    r"""Applies ``y = W x + b`` with ``W = diag(s_m) H ... diag(s_1) H``, s signs and H an orthogonal Hadamard matrix.

    W is exactly orthogonal, and is applied by the fast Walsh-Hadamard transform; the m n signs are all that it stores.
    They are those of ordinary parameters, which any optimiser moves; see Note [Latent signs].

    Source: A. Foucault, F. Mamalet, F. Malgouyres, "HadamRNN: binary and sparse ternary orthogonal RNNs", ICLR 2025,
    arXiv 2502.00047 (one stage).

    Args:
        features: features n of input and output: a power of two, or with ``block`` a multiple of it.
        bias: whether to add a bias, which starts at zero.
        device: of the parameters.
        dtype: real floating point type.
        block: order of the Hadamard matrices on the diagonal of H, a power of two; entries of H are then 0, 1 and -1
            times ``1 / sqrt(block)``. None for one matrix of order n.
        stages: number m of stages.

    Shape:
        Input and output ``(..., n)``.

    Attributes:
        latent: ``(stages, n)``, parameters whose signs are s.
        bias: ``(n,)`` or None.

    Raises:
        ValueError: for an n or a block that is no power of two, an n that the block does not divide, a complex dtype.
        TypeError, ValueError, RuntimeError: in ``forward``, for an input of another size, dtype, device or layout.

    Example:
        >>> layer = HadamardLinear(64)
        >>> optimizer = torch.optim.Adam(layer.parameters())
        >>> layer(torch.randn(128, 64)).relu().sum().backward()
        >>> optimizer.step()
        >>> {name: bits.shape for name, bits in layer.packed().items()}
        {'latent': torch.Size([1, 8])}
    """

    latent: Tensor
    bias: Tensor | None

    def __init__(
        self,
        features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        block: int | None = None,
        stages: int = 1,
    ) -> None:
        super().__init__(UpdateRule(), "haar", dtype)
        self.features = as_size("features", features)
        self._set_stages(block, stages)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_latent("latent", "features", self.features, **dd)
        self.register_parameter("bias", self.new_parameter((self.features,), **dd) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the signs anew and sets the bias to zero."""
        self.reset_latents()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def matrix(self) -> Tensor:
        """W ``(n, n)``, differentiable in the signs."""
        return self.assembled("latent")

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        check_input("HadamardLinear", input, self.latent)
        if input.ndim < 1 or input.size(-1) != self.features:
            raise ValueError(f"expected an input (..., {self.features}), got {tuple(input.shape)}")
        y = signed_transform(input, self.signs("latent", input), self.block)
        return y if self.bias is None else y + self.value("bias", y)

    def extra_repr(self) -> str:
        parts = [f"{self.features}"] + ([] if self.bias is not None else ["bias=False"])
        return ", ".join(parts + self.extra_repr_of_rule("haar"))

"""A linear layer with a unitary weight."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..linalg.check import check_dense
from ..projunn.rule import UpdateRule
from ..training.factored.collect import collect
from .base.forward import factored_weight, watch_own
from .base.inputs import as_size
from .base.module import UnitaryModule


class UnitaryLinear(UnitaryModule):
    r"""Applies ``y = x W^T + b`` with a unitary (real dtype: orthogonal) matrix W, as ``nn.Linear`` does with any.

    With ``in_features != out_features`` the stored weight is a square unitary matrix of the larger size, of which the
    first ``out_features`` rows and ``in_features`` columns are used: more outputs than inputs give orthonormal
    columns, an isometry; fewer give orthonormal rows, a projection after a rotation, which is 1-Lipschitz.

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: whether to add a bias, which starts at zero.
        device: of the parameters.
        dtype: real or complex; a complex layer stores pairs of real numbers.
        update: how the weight moves.
        init: how the weight starts: "haar", "identity", "henaff", "cayley" or a filler.
        gradient: "dense", or "factored": the fast way, in which backward leaves in ``.grad`` a sample of rank k by its
            factors; see Note [Sampling inside backward].

    Shape:
        Input ``(..., in_features)``, output ``(..., out_features)``.

    Attributes:
        weight: the stored parameter ``(n, n)`` (complex: ``(n, n, 2)``), n the larger of the two sizes.
        bias: ``(out_features,)`` (complex: ``(out_features, 2)``) or None.

    Raises:
        ValueError: for a size below 1, a rank above n, an unknown init, or a dtype that is not a floating point one.
        TypeError, ValueError, RuntimeError: in ``forward``, for an input that ``nn.Linear`` refuses, and with
            ``gradient="factored"`` for a sparse one.

    Example:
        >>> layer = UnitaryLinear(20, 20)
        >>> x = torch.randn(128, 20)
        >>> layer(x).square().sum().backward()
        >>> layer.projunn_step()
    """

    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] = "haar",
        gradient: str = "dense",
    ) -> None:
        super().__init__(update, init, dtype, gradient)
        self.in_features = as_size("in_features", in_features)
        self.out_features = as_size("out_features", out_features)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        n = max(self.in_features, self.out_features)
        self.register_unitary("weight", (n, n), **dd)
        self.register_parameter("bias", self.new_parameter((self.out_features,), **dd) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weight anew and sets the bias to zero."""
        self.reset_unitary()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def matrix(self) -> Tensor:
        """W ``(out_features, in_features)``, real or complex, as a differentiable view of the stored weight."""
        return self.value("weight")[: self.out_features, : self.in_features]

    def forward(self, input: Tensor) -> Tensor:
        watch_own(self)
        factored = factored_weight(self, "weight")
        check_dense("input of UnitaryLinear", input, sparse=factored is None)
        weight = self.value("weight", like=input)[: self.out_features, : self.in_features]
        bias = None if self.bias is None else self.value("bias")
        if factored is None:
            return F.linear(input, weight, bias)
        return collect(F.linear(input, weight.detach(), bias), factored, input)

    def extra_repr(self) -> str:
        parts = [f"in_features={self.in_features}, out_features={self.out_features}"]
        parts += [] if self.bias is not None else ["bias=False"]
        parts += ["complex=True"] if self.is_complex else []
        return ", ".join(parts + self.extra_repr_of_rule("haar"))

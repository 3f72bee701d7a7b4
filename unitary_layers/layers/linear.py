"""A linear layer with a unitary weight."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from ..linalg.check import check_dense
from ..projunn.rule import UpdateRule
from ..training.factored.graphs import collect
from ..training.weight import as_complex
from .base.forward import factored_weight, integer_of, value_in_use, watch_own
from .base.inputs import as_size
from .base.module import UnitaryModule
from .base.quantise import as_quantiser


class UnitaryLinear(UnitaryModule):
    r"""Applies ``y = x W^T + b`` with a unitary (real dtype: orthogonal) matrix W, as ``nn.Linear`` does with any.

    With ``in_features != out_features`` it is a rectangle: more outputs than inputs give orthonormal columns, an
    isometry; fewer give orthonormal rows, a projection, which is 1-Lipschitz. A state dict of ``nn.Linear`` loads, and
    gives the matrix of this kind that is nearest to its weight.

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: whether to add a bias, which starts at zero.
        device: of the parameters.
        dtype: real or complex; a complex layer stores pairs of real numbers.
        update: how the weight moves.
        init: how the weight starts: "haar", "identity", "henaff", "cayley", "timescales" or a filler.
        gradient: "dense", or "factored": the fast way, in which backward leaves in ``.grad`` a sample of small rank,
            kept as its two factors; see Note [Sampling inside backward].
        weight_bits: from 2 to 8: the forward pass uses the weight rounded to so many bits, and the step moves the exact
            one, which stays unitary; see Note [Quantised weights].
        weight_scale: of the rounded weight: "row", one for each row, which keeps its length; "mse", one for all, nearly
            that of the least mean square error; or "max", one for all with which the largest entry gets the largest
            code.

    Shape:
        Input ``(..., in_features)``, output ``(..., out_features)``.

    Attributes:
        weight: the stored parameter ``(out_features, in_features)``, as ``nn.Linear`` has it (complex: pairs
            ``(out_features, in_features, 2)``).
        bias: ``(out_features,)`` (complex: ``(out_features, 2)``) or None.

    Raises:
        ValueError: for a size below 1, an unknown init or scale, bits out of their range, or a dtype that is not a
            floating point one.
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
        weight_bits: int | None = None,
        weight_scale: str = "row",
    ) -> None:
        super().__init__(update, init, dtype, gradient)
        self.quantiser = as_quantiser(weight_bits, weight_scale)
        self.in_features = as_size("in_features", in_features)
        self.out_features = as_size("out_features", out_features)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_unitary("weight", (self.out_features, self.in_features), **dd)
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
        return self.value("weight")

    def integer(self) -> tuple[Tensor, Tensor]:
        """The weight of a layer with ``weight_bits`` in integers: ``int8``, stored as ``weight`` is, and their scale.

        Their product is the weight that a forward pass uses. The scale is ``()``, for "row" ``(out_features, 1)``.

        Raises:
            ValueError: if the layer has no ``weight_bits``.
        """
        return integer_of(self, "weight")

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input)
        watch_own(self)
        factored = factored_weight(self, "weight")
        check_dense("input of UnitaryLinear", input, sparse=factored is None)
        weight = value_in_use(self, "weight", input)
        bias = None if self.bias is None else as_complex(self.bias, self.is_complex)
        if factored is None:
            return F.linear(input, weight, bias)
        return collect(F.linear(input, weight.detach(), bias), factored, input)

    def adjoint(self, output: Tensor) -> Tensor:
        """The adjoint ``W^H`` of the map, without a bias: the inverse where the layer keeps all lengths.

        Args:
            output: ``(..., out_features)``, as ``forward`` returns it.

        Returns:
            ``(..., in_features)``, differentiable; gradients that come through it are dense.

        Raises:
            RuntimeError: for another number of features.
        """
        watch_own(self)
        return F.linear(output, value_in_use(self, "weight", output).mH)

    def extra_repr(self) -> str:
        parts = [f"in_features={self.in_features}, out_features={self.out_features}"]
        parts += [] if self.bias is not None else ["bias=False"]
        parts += ["complex=True"] if self.is_complex else []
        return ", ".join(parts + self.extra_repr_of_rule("haar"))

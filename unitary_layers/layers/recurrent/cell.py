"""One step of a unitary recurrence, in the place of ``nn.RNNCell``, and what it shares with the layer over time."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from ...linalg.check import check_dense
from ...projunn.rule import UpdateRule
from ...training.factored.graphs import collect
from ..activation import make_activation
from ..base.forward import factored_weight, integer_of, value_in_use, watch_own
from ..base.inputs import dtype_differs
from ..base.module import UnitaryModule
from ..base.quantise import as_quantiser
from .scan import scan

NONLINEARITIES = ("tanh", "relu", "modrelu", "identity")


class UnitaryRNNBase(UnitaryModule):
    """What the layer and the cell share: sizes, nonlinearity, and how their parameters are filled."""

    rank_share = 4  # a step costs nothing beside a pass through time, and rank is worth more here
    recurrent = "weight_hh"  # name of the parameters that recurrent matrices are made of
    uses = 64  # until a layer has seen a sequence; a cell does not know how long its loop is

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        nonlinearity: str | nn.Module,
        bias: bool,
        dtype: torch.dtype | None,
        update: UpdateRule,
        init: str | Callable[..., Tensor],
        gradient: str,
    ) -> None:
        super().__init__(update, init, dtype, gradient)
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if not isinstance(size, int):
                raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name} must be greater than zero, got {size}")
        if not isinstance(nonlinearity, nn.Module) and nonlinearity not in NONLINEARITIES:
            raise ValueError(
                f"expected nonlinearity to be a module (not its class) or one of {NONLINEARITIES}, got {nonlinearity!r}"
            )
        if self.is_complex and nonlinearity == "relu":
            raise ValueError("expected a nonlinearity of complex numbers, got 'relu'; 'modrelu' is its counterpart")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.nonlinearity = nonlinearity if isinstance(nonlinearity, str) else type(nonlinearity).__name__
        self.bias = bias

    def _new_direction(self, input_size: int, suffix: str, dd: dict[str, Any]) -> None:
        """Registers the parameters of one direction of one layer, under the names and in the order of torch."""
        n = self.hidden_size
        self.register_parameter(f"weight_ih{suffix}", self.new_parameter((n, input_size), **dd))
        self._new_recurrence(suffix, dd)
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(f"{name}{suffix}", self.new_parameter((n,), **dd) if self.bias else None)

    def _new_recurrence(self, suffix: str, dd: dict[str, Any]) -> None:
        """Registers what the recurrent matrix of one direction is made of."""
        self.register_unitary(f"weight_hh{suffix}", (self.hidden_size, self.hidden_size), **dd)

    def _recurrence(self, suffix: str, like: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        """:func:`scan` with the recurrent matrix of one direction of a layer."""
        weight = value_in_use(self, f"weight_hh{suffix}", like)
        return partial(scan, weight=weight, factored=factored_weight(self, f"weight_hh{suffix}"))

    def reset_parameters(self) -> None:
        """Input weights uniform in ``[-1/sqrt(n), 1/sqrt(n)]`` as in ``nn.RNN``, biases zero, recurrent ones by init.

        A bias that is not zero adds up over the time steps of a unitary recurrence; so, unlike torch's, ours start at
        zero.
        """
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("weight_ih"):
                nn.init.uniform_(parameter, -bound, bound)
            elif name.startswith("bias"):
                nn.init.zeros_(parameter)
        self.reset_unitary()
        for child in self.modules():
            if child is not self and callable(reset := getattr(child, "reset_parameters", None)):
                reset()

    def _input_map(self, x: Tensor, suffix: str) -> tuple[Tensor, Tensor | None]:
        """The input weight ``(n, input_size)`` and the sum of both biases ``(n,)``."""
        bias = self.value(f"bias_ih{suffix}", x) + self.value(f"bias_hh{suffix}", x) if self.bias else None
        return self.value(f"weight_ih{suffix}", x), bias

    def _project(self, x: Tensor, suffix: str) -> Tensor:
        """Input times input weight, plus both biases: ``(..., input_size)`` to ``(..., n)``."""
        return F.linear(x, *self._input_map(x, suffix))


class UnitaryRNNCell(UnitaryRNNBase):
    r"""One step of an Elman network with a unitary recurrent matrix, ``h' = phi(W_ih x + b_ih + W_hh h + b_hh)``.

    In the place of ``nn.RNNCell``, with its arguments, shapes and parameter names.

    Args:
        input_size: features of the input.
        hidden_size: features n of the hidden state.
        bias: whether to add the two biases, which start at zero.
        nonlinearity: as for :class:`UnitaryRNN`.
        device: of the parameters.
        dtype: real or complex; a complex cell stores pairs of real numbers and takes complex input.
        update: how the recurrent weight moves.
        init: how it starts: "haar", "identity", "henaff", "cayley", "timescales" or a filler.
        gradient: "dense" or "factored"; each use before a step is then sampled for itself, see Note [Sampling inside
            backward]: for many time steps take :class:`UnitaryRNN`, which samples their sum.
        weight_bits: as for :class:`UnitaryRNN`, which rounds once a pass, where a cell does at each step.
        weight_scale: as for :class:`UnitaryRNN`.

    Shape:
        Input ``(batch, input_size)`` or ``(input_size,)``; state and output ``(batch, n)`` or ``(n,)``.

    Raises:
        ValueError, TypeError, RuntimeError: for what ``nn.RNNCell`` refuses with the same type, naming expected and
            got.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str | nn.Module = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] = "henaff",
        gradient: str = "dense",
        weight_bits: int | None = None,
        weight_scale: str = "row",
    ) -> None:
        super().__init__(input_size, hidden_size, nonlinearity, bias, dtype, update, init, gradient)
        self.quantiser = as_quantiser(weight_bits, weight_scale)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self._new_direction(input_size, "", dd)
        self.activation = make_activation(nonlinearity, hidden_size, **dd)
        self.reset_parameters()

    @property
    def matrix(self) -> Tensor:
        """The unitary recurrent matrix ``(n, n)``, as a differentiable view of the stored weight."""
        return self.value("weight_hh")

    def integer(self) -> tuple[Tensor, Tensor]:
        """The recurrent weight in integers, as :meth:`UnitaryLinear.integer`."""
        return integer_of(self, "weight_hh")

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if isinstance(input, Proxy):
            return self.recorded(input, hx)
        watch_own(self)
        for name, x in [("input", input)] + ([] if hx is None else [("hidden", hx)]):
            check_dense(f"{name} of UnitaryRNNCell", x)
            if x.dim() not in (1, 2):
                raise ValueError(f"UnitaryRNNCell: Expected {name} to be 1D or 2D, got {x.dim()}D instead")
        x = torch.atleast_2d(input)
        if x.size(-1) != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.size(-1)} expected {self.input_size}")
        if hx is not None and hx.dim() != input.dim():
            raise RuntimeError(f"Expected hidden of {input.dim()}D as the input, but got {hx.dim()}D tensor")
        h = x.new_zeros(x.size(0), self.hidden_size) if hx is None else torch.atleast_2d(hx)
        if h.size(-1) != self.hidden_size:
            raise RuntimeError(f"hidden has inconsistent hidden_size: got {h.size(-1)}, expected {self.hidden_size}")
        if h.size(0) != x.size(0):
            raise RuntimeError(f"Input batch size {x.size(0)} doesn't match hidden batch size {h.size(0)}")
        for name, y, like in (("input", x, self.value("weight_ih", x)), ("hidden", h, x)):
            if dtype_differs(y, like):
                raise RuntimeError(f"expected {name} of dtype {like.dtype}, got {y.dtype}")
        projected = self._project(x, "")
        h, weight = h.to(projected.dtype), value_in_use(self, "weight_hh", projected)
        if (factored := factored_weight(self, "weight_hh")) is None:
            y = torch.addmm(projected, h, weight.mT)
        else:
            y = collect(torch.addmm(projected, h, weight.detach().mT), factored, h)
        h = self.activation(y)
        return h.squeeze(0) if input.dim() == 1 else h

    def extra_repr(self) -> str:
        parts = [] if self.bias else ["bias=False"]
        parts += [] if self.nonlinearity == "tanh" else [f"nonlinearity={self.nonlinearity!r}"]
        parts += ["complex=True"] if self.is_complex else []
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *parts, *self.extra_repr_of_rule("henaff")])

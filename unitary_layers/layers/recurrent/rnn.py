"""A recurrent layer with unitary recurrent matrices, in the place of ``nn.RNN``."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from ...linalg.check import check_dense
from ...linalg.transforms import is_transformed
from ...projunn.rule import UpdateRule
from ..activation import make_activation
from ..base.forward import integer_of, watch_own
from ..base.inputs import dtype_differs
from ..base.quantise import as_quantiser
from .cell import UnitaryRNNBase
from .impulse import impulses_pay, last_states
from .options import check_options, is_batched
from .packed import reordered


class UnitaryRNN(UnitaryRNNBase):
    r"""An Elman network with unitary (real dtype: orthogonal) recurrent matrices, in the place of ``nn.RNN``.

    .. math:: h_t = \phi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    which, for one layer, is the loop ::

        h = h_0
        for t in range(seq_len):
            h = phi(x[t] @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh)
            output[t] = h

    With the same weights and nonlinearity it returns what ``nn.RNN`` returns, and takes the same arguments, inputs
    (padded, unbatched or ``PackedSequence``) and parameter names. For long sequences take "modrelu", which starts as
    the identity: torch's default "tanh" shrinks the state at each step, and "relu" drops half of it.

    Args:
        input_size: features of the input.
        hidden_size: features n of the hidden state.
        num_layers: recurrent layers on top of each other.
        nonlinearity: "tanh", "relu", "modrelu", "identity", or a module that keeps the shape ``(rows, n)``, of which
            each layer and direction gets a copy. Complex layers take all but "relu".
        bias: whether to add the two biases, which start at zero.
        batch_first: whether padded input and output are ``(batch, seq, feature)``; does not touch ``h_0`` and ``h_n``.
        dropout: probability of dropout on the output of each layer but the last.
        bidirectional: whether a second direction runs from the end to the start.
        device: of the parameters.
        dtype: real or complex; a complex layer stores pairs of real numbers and takes complex input.
        update: how the recurrent weights move.
        init: how they start: "haar", "identity", "henaff", "cayley", "timescales" or a filler.
        gradient: "dense", or "factored": the fast way, in which backward leaves in ``.grad`` of the recurrent weights
            a sample of small rank, kept as its two factors; see Note [Sampling inside backward].
        return_sequence: whether the output holds the states of all time steps; False for those after the last one
            alone. Of a layer with nonlinearity "identity", few input features and no ``h_0`` that saves most of the
            time and memory; see Note [Responses to impulses].
        weight_bits: from 2 to 8: the forward pass uses the recurrent weights rounded to so many bits, and the step
            moves the exact ones; see Note [Quantised weights]. Input weights keep their precision.
        weight_scale: of the rounded weights: "row", "mse" or "max", as for :class:`UnitaryLinear`.

    Inputs:
        input: ``(seq, batch, input_size)``, ``(seq, input_size)``, batch first if so said, or a ``PackedSequence``.
        h_0: ``(D * num_layers, batch, n)`` (unbatched without batch), D = 2 if bidirectional else 1; zeros if not
            given.

    Outputs:
        output: ``(seq, batch, D * n)``, the last layer's states, in the form of the input; without
            ``return_sequence`` ``(batch, D * n)``, or ``(D * n,)`` unbatched: the state that each direction of the
            last layer ends with, backwards that at the first time step.
        h_n: in the shape of ``h_0``, the last state of each layer and direction.

    Raises:
        ValueError, TypeError, RuntimeError: for what ``nn.RNN`` refuses with the same type, naming expected and got.

    Example:
        >>> rnn = UnitaryRNN(10, 20, nonlinearity="modrelu")
        >>> output, h_n = rnn(torch.randn(5, 3, 10))
        >>> output.square().mean().backward()
        >>> rnn.projunn_step()
    """

    return_sequence = True  # of pickles of older releases
    if TYPE_CHECKING:  # the names of the first layer; those of the others are made in the same way
        weight_ih_l0: Tensor
        weight_hh_l0: Tensor
        bias_ih_l0: Tensor
        bias_hh_l0: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str | nn.Module = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] = "henaff",
        gradient: str = "dense",
        return_sequence: bool = True,
        weight_bits: int | None = None,
        weight_scale: str = "row",
    ) -> None:
        super().__init__(input_size, hidden_size, nonlinearity, bias, dtype, update, init, gradient)
        self.quantiser = as_quantiser(weight_bits, weight_scale)
        flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
        check_options(num_layers, dropout, **flags, return_sequence=return_sequence)
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.return_sequence = return_sequence
        self._directions = 2 if bidirectional else 1
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                self._new_direction(input_size if layer == 0 else hidden_size * self._directions, suffix, dd)
        self.activations = nn.ModuleList(
            make_activation(nonlinearity, hidden_size, **dd) for _ in range(num_layers * self._directions)
        )
        self.reset_parameters()

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction, as ``nn.RNN.all_weights``."""
        names = ["weight_ih", self.recurrent] + (["bias_ih", "bias_hh"] if self.bias else [])
        suffixes = [suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer)]
        return [[getattr(self, name + suffix) for name in names] for suffix in suffixes]

    def flatten_parameters(self) -> None:
        """Does nothing: there is no flat buffer. Loops written for ``nn.RNN`` call it."""

    def recurrent_matrix(self, layer: int = 0, *, reverse: bool = False) -> Tensor:
        """The unitary matrix ``(n, n)`` of a layer and direction, as a differentiable view of the stored weight."""
        return self.value(f"weight_hh_l{layer}" + ("_reverse" if reverse else ""))

    def integer(self, layer: int = 0, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """The recurrent weight of a layer and direction in integers, as :meth:`UnitaryLinear.integer`."""
        return integer_of(self, f"weight_hh_l{layer}" + ("_reverse" if reverse else ""))

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if isinstance(input, Proxy):
            return self.recorded(input, hx)
        if hx is not None:
            check_dense("hx of UnitaryRNN", hx)
        return self._packed(input, hx) if isinstance(input, PackedSequence) else self._padded(input, hx)

    def _packed(self, input: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence | Tensor, Tensor]:
        data, sizes, order, undo = input
        h_0 = None if hx is None else reordered(hx, order)
        output, h_n = self._run(data, sizes, h_0, int(sizes[0]))
        h_n = reordered(h_n, undo)
        return (PackedSequence(output, sizes, order, undo) if self.return_sequence else self._last(h_n)), h_n

    def _padded(self, input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        batched = is_batched("UnitaryRNN", input, hx)
        x = (input.transpose(0, 1) if self.batch_first else input) if batched else input.unsqueeze(1)
        if x.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        h_0 = hx if hx is None or batched else hx.unsqueeze(1)
        steps = int(x.size(0)) if torch.jit.is_tracing() else x.size(0)  # to whom sizes are tensors
        output, h_n = self._run(rearrange(x, "t b f -> (t b) f"), steps, h_0, x.size(1))
        h_n = h_n if batched else h_n.squeeze(1)
        if not self.return_sequence:
            return self._last(h_n), h_n
        output = rearrange(output, "(t b) f -> t b f", t=x.size(0))
        if not batched:
            return output.squeeze(1), h_n
        return (output.transpose(0, 1) if self.batch_first else output), h_n

    def _last(self, h_n: Tensor) -> Tensor:
        """The last states of the last layer, both directions side by side."""
        return rearrange(h_n[-self._directions :], "d ... n -> ... (d n)")

    def _run(self, x: Tensor, lengths: Tensor | int, hx: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        """All layers over packed rows ``(rows, input_size)``, with lengths as for :func:`scan`."""
        watch_own(self)
        if torch.is_grad_enabled() and not is_transformed():
            self.uses = len(lengths) if isinstance(lengths, Tensor) else lengths
        initial = self._initial_state(x, batch, hx)
        h_n = []
        for layer in range(self.num_layers):
            is_last = layer == self.num_layers - 1 and hx is None and not self.return_sequence
            last = self.activations[-self._directions :]
            by_impulses = is_last and impulses_pay(last, x, lengths, batch, self.hidden_size, self.bias)
            states = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                i = layer * self._directions + direction
                run = self._by_impulses if by_impulses else self._by_steps
                state, h = run(x, lengths, initial[i], suffix, self.activations[i])
                states.append(state)
                h_n.append(h)
            x = torch.cat(states, dim=-1) if self.bidirectional else states[0]
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, torch.stack(h_n)

    def _by_steps(
        self, x: Tensor, lengths: Tensor | int, h_0: Tensor, suffix: str, activation: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """All states of one direction of a layer, and the last ones."""
        projected, reverse = self._project(x, suffix), suffix.endswith("reverse")
        run = self._recurrence(suffix, projected)
        return run(projected, lengths, h_0.to(projected.dtype), activation=activation, reverse=reverse)

    def _by_impulses(
        self, x: Tensor, lengths: Tensor | int, h_0: Tensor, suffix: str, activation: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """The last states of one direction of a linear layer from zero, twice."""
        run, reverse = partial(self._recurrence(suffix, x), activation=activation), suffix.endswith("reverse")
        h = last_states(x, lengths, len(h_0), *self._input_map(x, suffix), run, reverse=reverse)
        return h, h

    def _initial_state(self, x: Tensor, batch: int, hx: Tensor | None) -> Tensor:
        """The initial state ``(D * num_layers, batch, n)``, after a look at the shapes of input and state."""
        if x.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.size(-1)}"
            )
        if dtype_differs(x, weight := self.value("weight_ih_l0", x)):
            raise ValueError(f"expected input of the weight's dtype {weight.dtype}, got {x.dtype}")
        expected = (self.num_layers * self._directions, batch, self.hidden_size)
        if hx is None:
            return x.new_zeros(expected)
        if tuple(hx.shape) != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {tuple(hx.shape)}")
        if dtype_differs(hx, x):
            raise RuntimeError(f"expected hx of the input's dtype {x.dtype}, got {hx.dtype}")
        return hx

    def extra_repr(self) -> str:
        defaults = {"num_layers": 1, "nonlinearity": "tanh", "bias": True, "batch_first": False}
        defaults |= {"dropout": 0.0, "bidirectional": False, "is_complex": False, "return_sequence": True}
        parts = [f"{k}={getattr(self, k)!r}" for k, default in defaults.items() if getattr(self, k) != default]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *parts, *self.extra_repr_of_rule("henaff")])

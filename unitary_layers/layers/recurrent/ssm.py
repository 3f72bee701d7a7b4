"""A linear state space layer whose states turn and fade, in a basis that a unitary weight learns."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ...linalg.check import check_dense
from ...projunn.rule import UpdateRule
from ...training.precision import output_dtype, without_autocast
from ..base.forward import watch_own
from ..base.inputs import as_size
from .options import check_options, is_batched
from .packed import reordered
from .ssm_base import UnitarySSMBase, pairs_of


class UnitarySSM(UnitarySSMBase):
    r"""A linear state space layer on the unit circle, used like ``nn.RNN``: real inputs and outputs, complex states.

    .. math:: h_t = \Lambda h_{t-1} + N Q^H B x_t, \qquad y_t = \mathrm{Re}(Q h_t) + D x_t + b

    with a unitary matrix Q, the diagonal :math:`\Lambda = \gamma e^{i \theta}` and :math:`N = \sqrt{1 - \gamma^2}`.
    For one layer it is the loop ::

        lam, h = gamma * exp(1j * theta), h_0
        for t in range(seq_len):
            h = lam * h + N * (Q.mH @ (B @ x[t]))
            output[t] = (Q @ h).real + D @ x[t] + b

    but no loop over time runs: a sequence is a few products of matrices, O(t log t); see Note [A recurrence as products
    of matrices]. The states ``s = Q h`` are those of ``UnitaryRNN(nonlinearity="identity")`` with the recurrent matrix
    :meth:`recurrent_matrix` and the input weight :meth:`input_matrix`; see Note [What the basis of a state space is
    for]. Being linear, the layer needs a nonlinear one after it.

    Source: A. Orvieto et al., "Resurrecting recurrent neural networks for long sequences", arXiv 2303.06349, whose
    linear recurrent unit has two free complex matrices in the place of B and Q.

    Args:
        input_size: features of the input.
        hidden_size: n, of the states and of the output.
        num_layers: layers on top of each other.
        bias: whether to add b, which starts at zero.
        batch_first: whether padded input and output are ``(batch, seq, feature)``; does not touch ``h_0`` and ``h_n``.
        dropout: probability of dropout on the output of each layer but the last.
        bidirectional: whether a second direction runs from the end to the start.
        device: of the parameters.
        dtype: real; states, phases, decays and the bases do not fall below float32 and complex64.
        decay: whether states fade; without it gamma and N are exactly 1.
        skip: whether to add ``D x_t``.
        phases: between which theta starts, log-uniform, in radians a step.
        radii: between which gamma starts, uniform in the square.
        return_sequence: whether the output holds all time steps; False for the last of each direction alone, which
            costs less.
        stride: steps from one output to the next: ``output[stride - 1 :: stride]``, made without the others. Above 1
            for one layer and one direction.
        update: how the bases move.
        init: how they start: "haar", "identity", "henaff", "cayley", "timescales" or a filler.

    Inputs:
        input: ``(seq, batch, input_size)``, ``(seq, input_size)``, batch first if so said, or a ``PackedSequence``.
        h_0: complex ``(D * num_layers, batch, n)`` (unbatched without batch), D = 2 if bidirectional else 1; zeros if
            not given.

    Outputs:
        output: ``(seq // stride, batch, D * n)``, the last layer's outputs, in the form of the input; without
            ``return_sequence`` ``(batch, D * n)``, or ``(D * n,)`` unbatched: what each direction of the last layer
            ends with, backwards that at the first time step.
        h_n: in the shape of ``h_0``, the last state of each layer and direction.

    Raises:
        ValueError, TypeError, RuntimeError: for what ``nn.RNN`` refuses with the same type, naming expected and got;
            for a complex dtype, or a stride where there is none.

    Example:
        >>> ssm = UnitarySSM(10, 20)
        >>> output, h_n = ssm(torch.randn(5, 3, 10))
        >>> output.square().mean().backward()
        >>> ssm.projunn_step()
    """

    if TYPE_CHECKING:  # the names of the first layer; those of the others are made in the same way
        basis_l0: Tensor
        log_decay_l0: Tensor | None
        weight_skip_l0: Tensor | None
        bias_l0: Tensor | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        decay: bool = True,
        skip: bool = True,
        phases: tuple[float, float] = (1e-3, math.pi),
        radii: tuple[float, float] = (0.99, 0.9999),
        return_sequence: bool = True,
        stride: int = 1,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] = "haar",
    ) -> None:
        super().__init__(input_size, hidden_size, dtype, update, init, phases, radii)
        flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional, "decay": decay, "skip": skip}
        check_options(num_layers, dropout, **flags, return_sequence=return_sequence)
        self.stride = as_size("stride", stride)
        if self.stride > 1 and (num_layers > 1 or bidirectional):
            raise ValueError(f"expected stride=1 with several layers or directions, got {stride}")
        self.num_layers, self.dropout, self.return_sequence = num_layers, float(dropout), return_sequence
        self.bias, self.batch_first, self.bidirectional, self.decay, self.skip = flags.values()
        self._directions = 2 if bidirectional else 1
        parts = {"log_decay": decay, "weight_skip": skip, "bias": bias}
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                size = self.input_size if layer == 0 else self.hidden_size * self._directions
                self._new_direction(size, suffix, parts, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def recurrent_matrix(self, layer: int = 0, *, reverse: bool = False) -> Tensor:
        """``W = Q diag(lambda) Q^H``, complex ``(n, n)``, unitary without decay; differentiable."""
        suffix = self._suffixes(layer)[int(reverse)]
        basis, one = torch.complex(*self._basis(suffix)), torch.ones(1, device=self.log_phase_l0.device)
        turns = self._spectrum(suffix).powers(one, self.log_phase_l0.dtype)
        return basis * torch.complex(*turns) @ basis.mH

    def input_matrix(self, layer: int = 0, *, reverse: bool = False) -> Tensor:
        """``Q N Q^H B``, complex ``(n, features)``, by which inputs drive the states ``Q h``; differentiable."""
        suffix = self._suffixes(layer)[int(reverse)]
        basis = self._basis(suffix)
        seen = self._seen(self._wide("weight_ih", suffix), self._spectrum(suffix), basis)
        return torch.complex(*basis) @ torch.complex(*seen)

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if isinstance(input, Proxy):
            return self.recorded(input, hx)  # type: ignore[no-any-return]  # a proxy
        return self._run(input, hx, self.return_sequence)

    def last(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As a call with ``return_sequence=False``: the last outputs ``(batch, D * n)``, and ``h_n``."""
        output, h_n = self._run(input, hx, whole=False)
        assert isinstance(output, Tensor)
        return output, h_n

    def step(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step, for streams: what :meth:`forward` computes, one input at a time.

        Args:
            x: ``(batch, input_size)`` or ``(input_size,)``.
            h: states after the step before, in the shape of ``h_n``; None at the start.

        Returns:
            The output of this step ``(batch, n)`` or ``(n,)``, and the states after it.

        Raises:
            ValueError: for a bidirectional layer, which must have seen the end.
        """
        if self.bidirectional:
            raise ValueError("expected one direction in step(): the other begins at the end of the sequence")
        for name, given in [("input", x)] + ([] if h is None else [("state", h)]):
            check_dense(f"{name} of UnitarySSM.step", given)
        if x.dim() not in (1, 2):
            raise ValueError(f"UnitarySSM.step: Expected input to be 1D or 2D, got {x.dim()}D instead")
        watch_own(self)
        batch = x if x.dim() == 2 else x[None]
        h_0 = self._initial_state(batch, h if h is None or x.dim() == 2 else h[:, None])
        y, states = batch.to(self.log_phase_l0.dtype), []
        with without_autocast(x.device.type):
            for layer in range(self.num_layers):
                start = y.new_zeros(2, self.hidden_size, y.size(0)) if h_0 is None else pairs_of(h_0[layer])
                y, state = self._advance(y, f"_l{layer}", start)
                states.append(torch.complex(*state).mT)
                y = self._dropped(y, layer)
        y, h_n = y.to(output_dtype(x)), torch.stack(states)
        return (y, h_n) if x.dim() == 2 else (y[0], h_n[:, 0])

    def _run(
        self, input: Tensor | PackedSequence, hx: Tensor | None, whole: bool
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """All layers; outputs of all steps or of the last."""
        if hx is not None:
            check_dense("hx of UnitarySSM", hx)
        watch_own(self)
        if isinstance(input, PackedSequence):
            return self._run_packed(input, hx, whole)
        batched = is_batched("UnitarySSM", input, hx)
        x = (input if self.batch_first else input.transpose(0, 1)) if batched else input[None]
        if x.size(1) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        y, h_n = self._layers(x, hx if hx is None or batched else hx[:, None], None, whole)
        if not batched:
            return y[0], h_n[:, 0]
        return (y if self.batch_first or not whole else y.transpose(0, 1)), h_n

    def _run_packed(
        self, input: PackedSequence, hx: Tensor | None, whole: bool
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if self.stride > 1 and whole:
            raise ValueError(f"expected stride=1 with a PackedSequence, got {self.stride}")
        data, sizes, order, undo = input
        check_dense("input of UnitarySSM", data)
        x, lengths = pad_packed_sequence(PackedSequence(data, sizes), batch_first=True)
        y, h_n = self._layers(x, None if hx is None else reordered(hx, order), lengths, whole)
        h_n = reordered(h_n, undo)
        if not whole:
            return (y if undo is None else y[undo]), h_n
        return PackedSequence(pack_padded_sequence(y, lengths, batch_first=True).data, sizes, order, undo), h_n

    def extra_repr(self) -> str:
        defaults: dict[str, object] = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        defaults |= {"decay": True, "skip": True, "phases": (1e-3, math.pi), "radii": (0.99, 0.9999)}
        defaults |= {"return_sequence": True, "stride": 1}
        parts = [f"{k}={getattr(self, k)!r}" for k, default in defaults.items() if getattr(self, k) != default]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *parts, *self.extra_repr_of_rule("haar")])

"""A recurrent layer whose recurrent matrices are signs and Hadamard matrices, in the place of ``nn.RNN``."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..base.forward import integer_of
from ..base.signs import SignedModule
from .rnn import UnitaryRNN
from .signed import signed_scan


class HadamardRNN(SignedModule, UnitaryRNN):
    r"""An Elman network with binary or ternary orthogonal recurrent matrices, in the place of ``nn.RNN``.

    .. math:: h_t = \phi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}),
        \quad W_{hh} = \mathrm{diag}(s_m) H \cdots \mathrm{diag}(s_1) H

    with signs s and an orthogonal Hadamard matrix H: exactly orthogonal, m n bits. The signs are those of ordinary
    parameters, which any optimiser moves; see Note [Latent signs]. All else is as in :class:`UnitaryRNN`. The published
    model has ``nonlinearity="identity"`` and a ReLU at the readout.

    Over long sequences a sign that changes spoils what the other weights have learned, and random signs serve as well:
    ``rnn.latent_hh_l0.requires_grad_(False)`` keeps them.

    Source: A. Foucault, F. Mamalet, F. Malgouyres, "HadamRNN: binary and sparse ternary orthogonal RNNs", ICLR 2025,
    arXiv 2502.00047.

    Args:
        input_size: features of the input.
        hidden_size: features n of the hidden state: a power of two, or with ``block`` a multiple of it.
        num_layers: recurrent layers on top of each other.
        nonlinearity: "tanh", "relu", "modrelu", "identity", or a module that keeps the shape ``(rows, n)``, of which
            each layer and direction gets a copy.
        bias: whether to add the two biases, which start at zero.
        batch_first: whether padded input and output are ``(batch, seq, feature)``; does not touch ``h_0`` and ``h_n``.
        dropout: probability of dropout on the output of each layer but the last.
        bidirectional: whether a second direction runs from the end to the start.
        device: of the parameters.
        dtype: real floating point type.
        block: order of the Hadamard matrices on the diagonal of H, a power of two; entries of H are then 0, 1 and -1
            times ``1 / sqrt(block)``. None for one matrix of order n.
        stages: number m of stages of each recurrent matrix.
        weight_bits: from 2 to 8: the forward pass uses the input weights rounded to so many bits, with one scale of
            the least mean square error; see Note [Quantised weights]. None for weights as they are.
        return_sequence: whether the output holds the states of all time steps, or those after the last one alone, as
            for :class:`UnitaryRNN`.

    Inputs:
        input: ``(seq, batch, input_size)``, ``(seq, input_size)``, batch first if so said, or a ``PackedSequence``.
        h_0: ``(D * num_layers, batch, n)`` (unbatched without batch), D = 2 if bidirectional else 1; zeros if not
            given.

    Outputs:
        output: ``(seq, batch, D * n)``, the last layer's states, in the form of the input; without
            ``return_sequence`` ``(batch, D * n)``, or ``(D * n,)`` unbatched.
        h_n: in the shape of ``h_0``, the last state of each layer and direction.

    Attributes:
        latent_hh_l0: ``(stages, n)``, parameters whose signs are s, in the place of ``weight_hh_l0``; so for each layer
            and direction.

    Raises:
        ValueError: for an n or a block that is no power of two, an n that the block does not divide, a complex dtype.
        ValueError, TypeError, RuntimeError: for what ``nn.RNN`` refuses with the same type, naming expected and got.

    Example:
        >>> rnn = HadamardRNN(10, 64, nonlinearity="identity")
        >>> optimizer = torch.optim.Adam(rnn.parameters())
        >>> output, h_n = rnn(torch.randn(5, 3, 10))
        >>> output.square().mean().backward()
        >>> optimizer.step()
    """

    recurrent = "latent_hh"

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
        block: int | None = None,
        stages: int = 1,
        weight_bits: int | None = None,
        return_sequence: bool = True,
    ) -> None:
        self._set_stages(block, stages)  # which the parameters are made with
        options = (num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype)
        own: dict[str, Any] = {"weight_bits": weight_bits, "weight_scale": "mse", "return_sequence": return_sequence}
        UnitaryRNN.__init__(self, input_size, hidden_size, *options, **own)

    def _new_recurrence(self, suffix: str, dd: dict[str, Any]) -> None:
        self.register_latent(f"latent_hh{suffix}", "hidden_size", self.hidden_size, **dd)

    def reset_parameters(self) -> None:
        """As of :class:`UnitaryRNN`, and draws the signs anew."""
        super().reset_parameters()
        self.reset_latents()

    def recurrent_matrix(self, layer: int = 0, *, reverse: bool = False) -> Tensor:
        """The recurrent matrix ``(n, n)`` of a layer and direction, differentiable in the signs."""
        return self.assembled(f"latent_hh_l{layer}" + ("_reverse" if reverse else ""))

    def integer(self, layer: int = 0, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """The input weight of a layer and direction in integers, ``int8`` in its shape, and their scale ``()``.

        Raises:
            ValueError: if the layer has no ``weight_bits``.
        """
        return integer_of(self, f"weight_ih_l{layer}" + ("_reverse" if reverse else ""))

    def _input_map(self, x: Tensor, suffix: str) -> tuple[Tensor, Tensor | None]:
        weight, bias = super()._input_map(x, suffix)
        return weight if self.quantiser is None else self.quantiser(weight), bias

    def _recurrence(self, suffix: str, like: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        return partial(signed_scan, signs=self.signs(f"latent_hh{suffix}", like), block=self.block)

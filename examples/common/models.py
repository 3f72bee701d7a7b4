"""One recurrent layer and a read-out: the model that all sequence examples train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KINDS = ("unitary", "ssm", "rnn", "lstm")
UNITARY_KINDS = KINDS[:2]
# modReLU with its bias at zero passes the state of a unitary recurrence on unchanged, where ReLU drops half of it at
# each step; nn.RNN, whose matrix is not bounded, diverges under ReLU and keeps its own default. nn.LSTM has its gates.
DEFAULT_NONLINEARITY = {"unitary": "modrelu", "ssm": None, "rnn": "tanh", "lstm": None}


def open_forget_gates_(lstm: nn.LSTM, bias: float) -> nn.LSTM:
    """Set the sum of the two forget-gate biases of every layer to `bias`.

    1 keeps the memory at the start, which the baseline needs on long delays: Jozefowicz, Zaremba, Sutskever,
    "An Empirical Exploration of Recurrent Network Architectures", ICML 2015. torch orders the gates i, f, g, o.
    """
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            if name.startswith("bias_"):
                parameter[lstm.hidden_size : 2 * lstm.hidden_size] = bias if name.startswith("bias_ih") else 0.0
    return lstm


class RectifiedSSM(nn.Module):
    """Rectified units that look at each input alone, and a unitary state space that remembers what they say.

    Args:
        input_size, hidden_size: channels of the input; units, and states.
        update: keywords of `UpdateRule` for the basis of the states.
        every_step: give the outputs after every time step, or only after the last.
    """

    def __init__(self, input_size: int, hidden_size: int, update: dict[str, object], every_step: bool) -> None:
        super().__init__()
        from unitary_layers import UnitarySSM, UpdateRule  # here, so that the baselines need torch alone

        self.encoder = nn.Linear(input_size, hidden_size)
        self.ssm = UnitarySSM(hidden_size, hidden_size, update=UpdateRule(**update), return_sequence=every_step)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """`(time, batch, input_size)` to outputs `(time, batch, hidden_size)`, or the last, and the last states."""
        return self.ssm(self.encoder(inputs).relu())


def recurrent_layer(
    kind: str,
    input_size: int,
    hidden_size: int,
    *,
    nonlinearity: str | None,
    init: str,
    update: dict[str, object],
    gradient: str,
    forget_bias: float,
    quantised: dict[str, object],
    every_step: bool,
) -> nn.Module:
    """The layer of one kind: `forget_bias` is for lstm alone, `update` for unitary and ssm, all else for unitary."""
    if kind not in KINDS:
        raise ValueError(f"model must be one of {KINDS}, got {kind!r}")
    if nonlinearity is None:
        nonlinearity = DEFAULT_NONLINEARITY[kind]
    if kind == "unitary":
        from unitary_layers import UnitaryRNN, UpdateRule  # here, so that the baselines need torch alone

        options = {"nonlinearity": nonlinearity, "update": UpdateRule(**update), "gradient": gradient, "init": init}
        return UnitaryRNN(input_size, hidden_size, **options, **quantised, return_sequence=every_step)
    if kind == "ssm":
        if nonlinearity is not None:
            raise ValueError(f"a state space is linear: expected no nonlinearity, got {nonlinearity!r}")
        return RectifiedSSM(input_size, hidden_size, update, every_step)
    if kind == "rnn":
        if nonlinearity not in ("relu", "tanh"):
            raise ValueError(f"nn.RNN knows the nonlinearities 'relu' and 'tanh', got {nonlinearity!r}")
        return nn.RNN(input_size, hidden_size, nonlinearity=nonlinearity)
    if nonlinearity is not None:
        raise ValueError(f"nn.LSTM has its own nonlinearities: expected None, got {nonlinearity!r}")
    return open_forget_gates_(nn.LSTM(input_size, hidden_size), forget_bias)


def make_readout(hidden_size: int, output_size: int, between: int | None) -> nn.Module:
    """A linear map, or two of them with a layer of `between` rectified units."""
    if between is None:
        return nn.Linear(hidden_size, output_size)
    return nn.Sequential(nn.Linear(hidden_size, between), nn.ReLU(), nn.Linear(between, output_size))


class SequenceModel(nn.Module):
    """Recurrent layer of one kind with a read-out, linear by default, after every time step or after the last.

    Args:
        kind: "unitary" (`UnitaryRNN`), "ssm" (`RectifiedSSM`), "rnn" (`nn.RNN`) or "lstm" (`nn.LSTM`).
        input_size, hidden_size, output_size: channels of the input, of the hidden state and of the read-out.
        every_step: read out at every time step, or only after the last.
        nonlinearity: "relu", "tanh"; for "unitary" also "modrelu" and "identity"; None for `DEFAULT_NONLINEARITY`.
        init: how the unitary recurrent weight starts: "haar", "identity", "henaff" or "cayley".
        update: keywords of `UpdateRule` for "unitary" and "ssm": variant, rank, sampler, ...
        gradient: of the unitary recurrent weight, "dense" or "factored".
        forget_bias: forget-gate bias of "lstm".
        relu_readout: read out the ReLU of the states.
        quantised: `weight_bits` and `weight_scale` of "unitary".
        readout_width: rectified units between the states and the outputs; None for a linear read-out.
    """

    def __init__(
        self,
        kind: str,
        input_size: int,
        hidden_size: int,
        output_size: int,
        every_step: bool,
        *,
        nonlinearity: str | None = None,
        init: str = "henaff",
        update: dict[str, object] | None = None,
        gradient: str = "dense",
        forget_bias: float = 1.0,
        relu_readout: bool = False,
        quantised: dict[str, object] | None = None,
        readout_width: int | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.every_step = every_step
        self.relu_readout = relu_readout
        self.layer = recurrent_layer(
            kind,
            input_size,
            hidden_size,
            nonlinearity=nonlinearity,
            init=init,
            update=update or {},
            gradient=gradient,
            forget_bias=forget_bias,
            quantised=quantised or {},
            every_step=every_step,
        )
        self.readout = make_readout(hidden_size, output_size, readout_width)

    def forward(self, inputs: Tensor) -> Tensor:
        """`(time, batch, input_size)` -> `(time, batch, output_size)` if `every_step`, else `(batch, output_size)`."""
        states, _ = self.layer(inputs)
        is_last = states.dim() == 2  # all that a unitary layer gives where no more is wanted
        return self.read_out(states if self.every_step or is_last else states[-1])

    def read_out(self, states: Tensor) -> Tensor:
        """What the states `(..., hidden_size)` say: `(..., output_size)`."""
        return self.readout(states.relu() if self.relu_readout else states)

    def freeze_recurrence_(self) -> None:
        """Keep the unitary weight where it is; all else is still trained."""
        from unitary_layers.training import unitary_weights  # here, so that the baselines need torch alone

        for weight in unitary_weights(self):
            weight.parameter.requires_grad_(False)

    def unitarity_error(self) -> float | None:
        """Largest Frobenius norm of W^H W - I over the unitary weights; None where nothing is unitary."""
        if self.kind not in UNITARY_KINDS:
            return None
        from unitary_layers import unitarity_error_of  # here, so that the baselines need torch alone

        return float(unitarity_error_of(self))

"""The layers of a unitary state space: their parameters, how they start, and their passes through a padded batch."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...linalg.transforms import is_open
from ...projunn.rule import UpdateRule
from ...training.precision import output_dtype, without_autocast
from ..base.forward import in_use
from ..base.inputs import as_dtype, as_size, dtype_differs
from ..base.module import UnitaryModule
from .diagonal import Spectrum, all_states, last_state, outputs_of_narrow, real_rows, strided, times
from .ragged import ended_together, turned, without_padding

# Note [What the basis of a state space is for]
# With W = Q diag(lambda) Q^H and s_t = Q h_t the layer is a linear recurrence s_t = W s_(t-1) + Q N Q^H B x_t, whose
# matrix W is any normal one, unitary if gamma = 1: Q holds its eigenvectors. In the eigenbasis a step is n products,
# and a sequence a few products of matrices. Behind Q comes no further matrix C: a free C would absorb Q, and what a
# real C could do, the linear layer after this one does.
# N = sqrt(1 - gamma^2) lets states of every decay come to the same size on inputs that are independent over time, as
# in the linear recurrent unit. Without decay N is 1.
# Phases and decays are kept as log theta and log(-log gamma), so that gamma is below 1 whatever an optimiser does, and
# slow states are changed in small steps.

NARROW = 4  # features of an input up to which the states of all steps are never formed


class UnitarySSMBase(UnitaryModule):
    """Layers on top of each other on a padded batch: the parameters of each, under names that end in ``suffix``."""

    num_layers: int
    bidirectional: bool
    dropout: float
    stride: int
    bias: bool
    skip: bool
    weight_ih_l0: Tensor
    log_phase_l0: Tensor
    _directions: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dtype: torch.dtype | None,
        update: UpdateRule,
        init: str | Callable[..., Tensor],
        phases: tuple[float, float],
        radii: tuple[float, float],
    ) -> None:
        if as_dtype(dtype).is_complex:
            raise ValueError(f"expected a real dtype, for inputs and outputs are real, got {dtype}")
        super().__init__(update, init, dtype)
        self.input_size, self.hidden_size = as_size("input_size", input_size), as_size("hidden_size", hidden_size)
        self.phases, self.radii = _range("phases", phases, math.pi), _range("radii", radii, 1.0)
        if self.radii[1] == 1.0:
            raise ValueError(f"expected radii below 1 (decay=False is exactly 1), got {radii!r}")

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]

    def _new_direction(self, input_size: int, suffix: str, parts: dict[str, bool], dd: dict[str, Any]) -> None:
        """Registers the parameters of one layer and direction; ``parts`` says which of the optional ones it has."""
        n, wide = self.hidden_size, torch.promote_types(as_dtype(dd["dtype"]), torch.float32)
        self.register_parameter(f"weight_ih{suffix}", self.new_parameter((n, input_size), **dd))
        self.register_unitary(f"basis{suffix}", (n, n), dd["device"], wide.to_complex())
        self.register_parameter(f"log_phase{suffix}", self.new_parameter((n,), dd["device"], wide))
        for name, shape, dtype in (
            ("log_decay", (n,), wide),
            ("weight_skip", (n, input_size), dd["dtype"]),
            ("bias", (n,), dd["dtype"]),
        ):
            parameter = self.new_parameter(shape, dd["device"], dtype) if parts[name] else None
            self.register_parameter(f"{name}{suffix}", parameter)

    def _kept(self) -> dict[str, bool]:
        return super()._kept() | {name: False for name in self._parameters if name.startswith("log_")}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws everything anew.

        Phases are log-uniform, squared radii uniform, weights normal with variance 2 / inputs, so that outputs have
        the variance of independent inputs; biases are zero, and the bases start by ``init``.
        """
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("log_phase"):
                parameter.uniform_(*map(math.log, self.phases))
            elif name.startswith("log_decay"):
                squared = torch.empty_like(parameter, dtype=torch.float64).uniform_(*(r**2 for r in self.radii))
                parameter.copy_((-0.5 * squared.log()).log())
            elif name.startswith("weight"):
                nn.init.normal_(parameter, std=math.sqrt(2 / parameter.size(1)))
            elif name.startswith("bias"):
                parameter.zero_()
        self.reset_unitary()

    def _spectrum(self, suffix: str) -> Spectrum:
        log_decay = getattr(self, f"log_decay{suffix}")
        log_gamma = None if log_decay is None else -log_decay.exp()
        return Spectrum(log_gamma, getattr(self, f"log_phase{suffix}").double().exp())

    def _basis(self, suffix: str) -> Tensor:
        """Q as pairs ``(2, n, n)``."""
        return in_use(self, f"basis{suffix}").permute(2, 0, 1)

    def _seen(self, driven: Tensor, spectrum: Spectrum, basis: Tensor) -> Tensor:
        """``N Q^H driven`` of a real ``(n, ...)``, as pairs."""
        seen = torch.stack((basis[0].mT @ driven, -basis[1].mT @ driven))
        if spectrum.log_gamma is None:
            return seen
        return seen * (-torch.expm1(2 * spectrum.log_gamma)).sqrt()[:, None]

    def _pass(
        self, x: Tensor, suffix: str, h_0: Tensor | None, lengths: Tensor | None, stride: int
    ) -> tuple[Tensor, Tensor]:
        """Outputs ``(b, t // stride, n)`` of ``(b, t, features)``, and the states after the last steps as pairs."""
        spectrum, basis = self._spectrum(suffix), self._basis(suffix)
        weight, skip = self._seen(self._wide("weight_ih", suffix), spectrum, basis), self._skip(suffix)
        if x.size(-1) <= NARROW and not is_open(x.size(1)):
            y = outputs_of_narrow(x, spectrum, weight, basis, skip, h_0, stride)
            h = last_state(ended_together(x, lengths), spectrum, weight, h_0, lengths)
            return self._with_bias(y, suffix), h
        driven = (weight.flatten(0, 1) @ x.flatten(0, 1).mT).view(2, self.hidden_size, *x.shape[:2])
        states = all_states(driven, spectrum, h_0)
        y = (states.flatten(0, 1).flatten(1).mT @ real_rows(basis).mT).view(*x.shape[:2], self.hidden_size)
        y = strided(y if skip is None else y + F.linear(x, skip), 1, stride)
        if lengths is None:
            return self._with_bias(y, suffix), states[..., -1]
        ends = (lengths.to(x.device) - 1).view(1, 1, -1, 1).expand(*states.shape[:3], 1)
        return self._with_bias(y, suffix), states.gather(-1, ends).squeeze(-1)

    def _last(self, x: Tensor, suffix: str, h_0: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs ``(b, n)`` and states of the last steps alone."""
        spectrum, basis, together = self._spectrum(suffix), self._basis(suffix), ended_together(x, lengths)
        weight = self._seen(self._wide("weight_ih", suffix), spectrum, basis)
        h = last_state(together, spectrum, weight, h_0, lengths)
        return self._read_out(h, together[:, -1], suffix, basis), h

    def _advance(self, x: Tensor, suffix: str, h: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs ``(b, n)`` and states of one step of inputs ``(b, features)``."""
        spectrum, basis = self._spectrum(suffix), self._basis(suffix)
        one = torch.ones(1, dtype=torch.int64, device=x.device)
        h = times(spectrum.powers(one, x.dtype).mT, h)
        h = h + self._seen(self._wide("weight_ih", suffix) @ x.mT, spectrum, basis)
        return self._read_out(h, x, suffix, basis), h

    def _read_out(self, h: Tensor, x: Tensor, suffix: str, basis: Tensor) -> Tensor:
        y, skip = (real_rows(basis) @ h.flatten(0, 1)).mT, self._skip(suffix)
        return self._with_bias(y if skip is None else y + F.linear(x, skip), suffix)

    def _wide(self, name: str, suffix: str) -> Tensor:
        """A parameter in the precision of the states, which does not fall below float32."""
        return getattr(self, name + suffix).to(self.log_phase_l0.dtype)  # type: ignore[no-any-return]

    def _skip(self, suffix: str) -> Tensor | None:
        return self._wide("weight_skip", suffix) if self.skip else None

    def _with_bias(self, y: Tensor, suffix: str) -> Tensor:
        return y + self._wide("bias", suffix) if self.bias else y

    def _layers(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None, whole: bool) -> tuple[Tensor, Tensor]:
        """Outputs ``(b, t, D * n)``, or ``(b, D * n)`` of the last steps, of a batch ``(b, t, features)``."""
        hx, dtype, h_n = self._initial_state(x, hx), output_dtype(x), []
        y = x.to(self.log_phase_l0.dtype)
        with without_autocast(x.device.type):
            for layer in range(self.num_layers):
                outputs = []
                for direction, suffix in enumerate(self._suffixes(layer)):
                    h_0 = None if hx is None else pairs_of(hx[layer * self._directions + direction])
                    of = (turned(y, lengths) if direction else y, suffix, h_0, lengths)
                    one, h = self._one(*of, direction == 1, whole or layer < self.num_layers - 1)
                    outputs.append(one)
                    h_n.append(torch.complex(*h).mT)
                y = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
                y = self._dropped(y, layer)
        return y.to(dtype), torch.stack(h_n)

    def _one(
        self, x: Tensor, suffix: str, h_0: Tensor | None, lengths: Tensor | None, reverse: bool, whole: bool
    ) -> tuple[Tensor, Tensor]:
        """One layer and direction, with the outputs where the inputs were before they were turned."""
        if not whole:
            return self._last(x, suffix, h_0, lengths)
        y, h = self._pass(x, suffix, h_0, lengths, self.stride)
        return without_padding(turned(y, lengths) if reverse else y, lengths), h

    def _dropped(self, y: Tensor, layer: int) -> Tensor:
        if self.dropout and layer < self.num_layers - 1:
            return F.dropout(y, self.dropout, self.training)
        return y

    def _initial_state(self, x: Tensor, hx: Tensor | None) -> Tensor | None:
        """The initial state, after a look at the shapes and dtypes of input ``(b, ..., features)`` and state."""
        if x.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.size(-1)}"
            )
        if dtype_differs(x, self.weight_ih_l0):
            raise ValueError(f"expected input of the weight's dtype {self.weight_ih_l0.dtype}, got {x.dtype}")
        if hx is None:
            return None
        expected = (self.num_layers * self._directions, x.size(0), self.hidden_size)
        if tuple(hx.shape) != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {tuple(hx.shape)}")
        if hx.dtype != (wanted := self.log_phase_l0.dtype.to_complex()):
            raise RuntimeError(f"expected hx of dtype {wanted}, got {hx.dtype}")
        return hx


def _range(name: str, given: tuple[float, float], largest: float) -> tuple[float, float]:
    """Two numbers above 0, at most ``largest``, in order; ``ValueError`` otherwise."""
    is_pair = isinstance(given, (tuple, list)) and len(given) == 2 and all(isinstance(v, (int, float)) for v in given)
    if not is_pair or not 0 < given[0] <= given[1] <= largest:
        raise ValueError(f"expected {name} to be two numbers 0 < low <= high <= {largest:.4g}, got {given!r}")
    return float(given[0]), float(given[1])


def pairs_of(h: Tensor) -> Tensor:
    """Complex states ``(b, n)`` as pairs ``(2, n, b)``."""
    return torch.stack((h.real, h.imag)).mT

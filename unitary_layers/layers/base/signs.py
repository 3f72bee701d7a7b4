"""What the layers share whose matrices are products of signs and Hadamard matrices: how the signs are kept.

Source: A. Foucault, F. Mamalet, F. Malgouyres, "HadamRNN: binary and sparse ternary orthogonal RNNs", ICLR 2025,
arXiv 2502.00047.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...linalg.hadamard import check_order, walsh_hadamard_like
from ...linalg.transforms import is_transformed
from .inputs import as_size
from .module import UnitaryModule

# Note [Latent signs]
# A sign has no derivative. Each is that of an ordinary parameter, the latent, which any optimiser moves, by the
# gradient of the sign (straight-through). The sign of zero is 1. A latent far from zero would take long to change its
# sign, so a gradient that would take it further out than 1 or -1 is dropped, and one that brings it back is not. No
# optimiser needs to know that it has to clamp. Under the transforms of torch.func the gradient passes straight through
# wherever the latent is.


class _Sign(torch.autograd.Function):
    """The sign of a latent; see Note [Latent signs]."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor) -> Tensor:
        ctx.save_for_backward(latent)
        return _sign(latent)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (latent,) = ctx.saved_tensors
        return torch.where((latent.abs() >= 1) & (grad * latent < 0), 0, grad)


def _sign(latent: Tensor) -> Tensor:
    return torch.where(latent < 0, -1.0, 1.0).to(latent.dtype)


def sign_of(latent: Tensor) -> Tensor:
    """The signs of latents, 1 and -1, with the gradients of Note [Latent signs]."""
    if is_transformed():
        return _sign(latent).detach() + (latent - latent.detach())
    signs: Tensor = _Sign.apply(latent)
    return signs


def signed_transform(x: Tensor, signs: Tensor, block: int | None) -> Tensor:
    """``W x`` for ``W = diag(s_m) H ... diag(s_1) H``, with orthogonal H, of the last dimension ``(..., n)``.

    Args:
        x: ``(..., n)``.
        signs: ``(m, n)``, of the first stage first.
        block: order of the Hadamard matrices on the diagonal of H; n if None.
    """
    transform = walsh_hadamard_like(x, block)
    for stage in signs.unbind():
        x = transform(x)
        x = x * stage.to(x.dtype)
    return x


def assembled(signs: Tensor, block: int | None) -> Tensor:
    """The matrix W ``(n, n)`` of :func:`signed_transform`."""
    identity = torch.eye(signs.size(-1), dtype=signs.dtype, device=signs.device)
    return signed_transform(identity, signs, block).mT


class SignedModule(UnitaryModule):
    """Base of layers with matrices ``diag(s_m) H ... diag(s_1) H / sqrt(n^m)``, s signs and H a Hadamard matrix.

    They are orthogonal whatever the signs are; there is nothing to step, to retract or to watch. The signs are those of
    latents ``(m, n)``, ordinary parameters that never fall below float32; see Note [Latent signs].

    Attributes:
        block: order of the Hadamard matrices on the diagonal of H, or None for one of order n.
        stages: number m of pairs of signs and H.
    """

    block: int | None
    stages: int

    def register_latent(self, name: str, what: str, n: int, device: Any, dtype: torch.dtype | None) -> None:
        """Registers unfilled latents ``(stages, n)``.

        Args:
            name: of the parameter.
            what: the name of the argument n.
            n: features.
            device: of the parameter.
            dtype: of the layer.

        Raises:
            ValueError: for a complex dtype, or an n that has no such H.
        """
        if self.is_complex:
            raise ValueError(f"expected a real dtype, got {dtype}: signs are real")
        check_order(what, n, self.block)
        latent = self._empty((self.stages, n), device, dtype)
        self.register_parameter(name, nn.Parameter(latent.to(torch.promote_types(latent.dtype, torch.float32))))
        self._latents = (*getattr(self, "_latents", ()), name)

    def _set_stages(self, block: int | None, stages: int) -> None:
        self.block = None if block is None else as_size("block", block)
        self.stages = as_size("stages", stages)

    def reset_latents(self) -> None:
        """Draws the latents uniformly from ``[-1, 1]``: each sign is a fair coin."""
        for name in self._latents:
            nn.init.uniform_(getattr(self, name), -1, 1)

    def signs(self, name: str, like: Tensor | None = None) -> Tensor:
        """The signs ``(stages, n)`` of a latent, 1 and -1, in the dtype of ``like``."""
        signs = sign_of(getattr(self, name))
        return signs if like is None else signs.to(like.dtype)

    def assembled(self, name: str, like: Tensor | None = None) -> Tensor:
        """The matrix W ``(n, n)`` of a latent, differentiable in the signs."""
        return assembled(self.signs(name, like), self.block)

    def packed(self) -> dict[str, Tensor]:
        """The signs as bits: for each latent, by its name, ``(stages, ceil(n / 8))`` of uint8.

        A one stands for 1 and a zero for -1, the first of eight in the highest bit, as ``numpy.packbits`` has it.
        """
        return {name: _pack(self.signs(name).detach()) for name in self._latents}

    def load_packed_(self, packed: Mapping[str, Tensor]) -> None:
        """Sets the latents to the signs that :meth:`packed` gave, 1 and -1.

        Raises:
            ValueError: for other names, shapes or dtypes than those of :meth:`packed`; then nothing was changed.
        """
        expected = {name: ((self.stages, -(-getattr(self, name).size(-1) // 8)), torch.uint8) for name in self._latents}
        got = {name: (tuple(bits.shape), bits.dtype) for name, bits in packed.items()}
        if got != expected:
            raise ValueError(f"expected packed signs {expected}, got {got}; nothing was loaded")
        with torch.no_grad():
            for name, bits in packed.items():
                latent = getattr(self, name)
                latent.copy_(_unpack(bits.to(latent.device), latent.size(-1)))

    def extra_repr_of_rule(self, default_init: str) -> list[str]:
        """Those of the options that are not the default, for ``extra_repr``; there is no rule."""
        parts = [] if self.block is None else [f"block={self.block}"]
        parts += [] if self.stages == 1 else [f"stages={self.stages}"]
        return parts if self.quantiser is None else [*parts, f"weight_bits={self.quantiser.bits}"]

    def _kept(self) -> dict[str, bool]:
        return super()._kept() | dict.fromkeys(self._latents, False)


def _weights(device: torch.device) -> Tensor:
    return torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)


def _pack(signs: Tensor) -> Tensor:
    """``(..., n)`` of 1 and -1 as ``(..., ceil(n / 8))`` of uint8."""
    bits = F.pad((signs > 0).to(torch.uint8), (0, -signs.size(-1) % 8)).unflatten(-1, (-1, 8))
    return (bits * _weights(signs.device)).sum(-1, dtype=torch.uint8)


def _unpack(packed: Tensor, n: int) -> Tensor:
    """The n signs ``(..., n)`` of :func:`_pack`, as floating point numbers."""
    bits = (packed.unsqueeze(-1) & _weights(packed.device)) != 0
    return bits.flatten(-2)[..., :n] * 2.0 - 1.0

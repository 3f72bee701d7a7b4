"""Walks of unitary matrices for drift.py: our steps and the formulas of others, on gradients of one length."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from unitary_layers import OrthogonalConv2d, UpdateRule, projunn_step
from unitary_layers.layers.base.module import UnitaryModule
from unitary_layers.linalg import haar_unitary
from unitary_layers.training import unitary_weights

SIZE, WIDE, LENGTH = 64, 256, 0.3
DIRECTIONS = ("random", "turning", "fixed")  # those of the matrices of a stack, in turn
STACK = len(DIRECTIONS)


class Stack(UnitaryModule):
    """Orthogonal matrices `(STACK, rows, n)` that move together, without a layer around them."""

    def __init__(self, rows: int, columns: int, update: UpdateRule) -> None:
        super().__init__(update, "haar", torch.float32)
        self.register_unitary("weight", (STACK, rows, columns), None, torch.float32)
        self.reset_unitary()


class Gradients:
    """Gradients of rank k and norm `LENGTH` for a stack of unitary matrices, whose directions are `DIRECTIONS`."""

    def __init__(self, like: Tensor, rank: int) -> None:
        m, rows, columns = like.shape
        kinds = torch.arange(m) % len(DIRECTIONS)
        self.turning = (kinds == DIRECTIONS.index("turning"))[:, None, None]
        random = (kinds == DIRECTIONS.index("random"))[:, None, None]
        # Pools of coprime sizes: 127 x 128 pairs pass before one comes again.
        self.pools = []
        for size, n in ((127, rows), (128, columns)):
            frames = torch.linalg.qr(torch.randn(size, m, n, rank, dtype=like.dtype)).Q
            self.pools.append(torch.where(random, frames, frames[0]) * (LENGTH / rank**0.5) ** 0.5)
        # One that turns multiplies the weight by a matrix of rank k from the right, at the side of its columns.
        shape = (m, columns, rank)
        self.turn = torch.linalg.qr(torch.randn(shape, dtype=like.dtype)).Q * (LENGTH / rank**0.5) ** 0.5

    def at(self, weight: Tensor, step: int) -> Tensor:
        """The gradient `(m, rows, n)` at a step, of which that of a turning matrix depends on where it is."""
        left, right = (pool[step % len(pool)] for pool in self.pools)
        return torch.where(self.turning, weight @ self.turn, left) @ right.mH


class Ours:
    """A module whose unitary weights take projUNN's step."""

    def __init__(self, module: nn.Module, rank: int) -> None:
        self.module, self.weights = module, list(unitary_weights(module))
        self.gradients = [Gradients(weight.matrix, rank) for weight in self.weights]

    def step(self, index: int) -> None:
        for weight, gradients in zip(self.weights, self.gradients, strict=True):
            g = gradients.at(weight.matrix, index)
            weight.parameter.grad = torch.view_as_real(g) if weight.is_complex else g
        projunn_step(self.module)

    def matrices(self) -> list[Tensor]:
        return [weight.matrix for weight in self.weights]


class Theirs:
    """Orthogonal matrices that take the step of a formula, from a skew matrix in the tangent space."""

    def __init__(self, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.formula, self.weight = formula, haar_unitary(SIZE, batch=(STACK,))
        self.gradients = Gradients(self.weight, rank=1)

    def step(self, index: int) -> None:
        change = -self.weight.mT @ self.gradients.at(self.weight, index)
        self.weight = self.formula(self.weight, (change - change.mT) / 2)

    def matrices(self) -> list[Tensor]:
        return [self.weight]


def qr(w: Tensor, skew: Tensor) -> Tensor:
    """`qf(W + W A)`, R with a positive diagonal (Absil, Mahony, Sepulchre 2008, example 4.1.3; geoopt's `retr`)."""
    q, r = torch.linalg.qr(w + w @ skew)
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def cayley(w: Tensor, skew: Tensor) -> Tensor:
    """`W (I - A / 2)^(-1) (I + A / 2)` (Wen and Yin, Math. Program. 142, 2013, equation 2)."""
    eye = torch.eye(w.size(-1))
    return w @ torch.linalg.solve(eye - skew / 2, eye + skew / 2)


def exponential(w: Tensor, skew: Tensor) -> Tensor:
    """`W exp(A)` (Lezcano-Casado, NeurIPS 2019, arXiv 1909.09501: a trivialisation whose base moves at each step)."""
    return w @ torch.linalg.matrix_exp(skew)


def pogo(w: Tensor, skew: Tensor) -> Tensor:
    """`M (3 I - M^T M) / 2` of `M = W + W A` (https://github.com/adrianjav/pogo, with its default lambda of 1/2)."""
    m = w + w @ skew
    return m * 1.5 - m @ (m.mT @ m) * 0.5


def ours(variant: str, rank: int, retract_every: int | None, kind: str) -> Ours:
    """A stack, of 64 x 64 or 256 x 64, or the blocks of a convolution: 4 real and 6 complex ones, of 64 x 64."""
    rule = UpdateRule(variant, rank=rank, lr=1.0, retract_every=retract_every, direction="gradient")
    if kind == "conv-":
        return Ours(OrthogonalConv2d(SIZE, SIZE, input_size=4, update=rule), rank)
    return Ours(Stack(WIDE if kind == "tall-" else SIZE, SIZE, rule), rank)


Walk = Ours | Theirs
CASES: dict[str, Callable[[], Walk]] = {
    f"{kind}{variant}{rank}{'' if every is None else '-without'}": partial(ours, variant, rank, every, kind)
    for kind, every in (("", None), ("tall-", None), ("conv-", None), ("", 0))
    for variant in "TD"
    for rank in (1, 4)
} | {
    name: partial(Theirs, formula)
    for name, formula in {"QR": qr, "Cayley": cayley, "exp": exponential, "POGO": pogo}.items()
}

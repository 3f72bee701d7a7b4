"""Weights of few bits: a forward pass takes the rounded weight, backward hands its gradient to the exact one.

QORNN: Foucault, Mamalet, Malgouyres, "Quantized approximately orthogonal recurrent neural networks", arXiv 2402.04012.
The codes and the scales are not theirs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Note [Quantised weights]
# q(W) = alpha c, where the codes c are the integers nearest to W / alpha among -(2^(b-1) - 1) .. 2^(b-1) - 1. Backward
# takes the gradient with respect to q(W) for that of W (straight-through), and the step moves W, which stays unitary;
# q(W) is only near to a unitary matrix.
# The published codes have -2^(b-1) as well, which takes 5 % from the error of a Haar matrix at 4 bits, 12 % at 2. Here
# q(-W) = -q(W), and that is worth more to a recurrence. The rows (c, -s) and (s, c) of a plane get the same codes, so
# that a rotation can stay one, see Note [Rows keep their lengths]; and the mean of the levels is zero. Otherwise q(W)
# has a part along the vector of ones, which grows with sqrt(n): at 2 bits, n = 512, least squares, its largest singular
# value is 1.87, and 1.39 with these codes.
# One bit has no such codes. A sign times a scale is 0.60 away from a Haar matrix.

# Note [The scale of least squares]
# alpha = max |W| / (2^(b-1) - 1) clips nothing and spends levels on few large entries. The best alpha for given codes
# is <W, c> / <c, c>, and |W - alpha c|^2 is then |W|^2 - <W, c>^2 / <c, c>. So codes are made with six alphas, from the
# one that reaches the largest entry to b / 10 of it, between which those for normal entries lie, and with up to three
# larger ones, which leave the last levels free. The best is kept, and codes are made anew with its alpha. A fixed-point
# iteration alone stays in the next of several minima, and is slow above 4 bits. Nothing is asked of the host, so a GPU
# does not wait.
# The larger ones are for rotations of planes, whose rows are two numbers: any two integers give a direction, and those
# without a 7 are most. At 4 bits there are 73 angles in half a turn in the place of 29, and the error of an angle is
# 0.022 in the place of 0.034 radians. A linear recurrence with frozen rotations tells 96.3 % of the permuted digits of
# MNIST, not 94.3 %, and 96.8 % in float32.

# Note [Rows keep their lengths]
# A matrix of least squares is shorter than W, one with max |W| is longer, and a linear recurrence feels it at each of
# its steps. With an alpha for each row, |w| / |c|, each row is as long as that of W, at hardly any cost in error. Plane
# rotations, with which most recurrences start, become rotations by angles nearby, whatever the bits.
# Dividing alpha by the largest singular value of q(W) would keep states from growing too. But that is 1.14 for a Haar
# matrix at 4 bits, whose eigenvalues are at most 1.01, so that after a hundred steps nothing would be left.

SCALES = ("row", "mse", "max")
LEAST, MOST = 2, 8  # bits: one code on either side of zero at least, and no more than an int8 holds
TRIED = 6
FREE = 3  # levels that a larger alpha may leave free


@dataclass(frozen=True)
class Quantiser:
    """Rounds real matrices to multiples of a scale; see Note [Quantised weights].

    Attributes:
        bits: of a code, from 2 to 8.
        scale: "row", one alpha for each row, which keeps its length; "mse", one for all with the least mean square
            error; or "max", one for all with which the largest entry gets the largest code.
    """

    bits: int
    scale: str = "row"

    def __call__(self, matrix: Tensor) -> Tensor:
        """The quantised matrix, in the shape of this one, of which its gradient is taken for that of this one."""
        codes, alpha = self.codes(matrix.detach())
        return (codes * alpha).to(matrix.dtype) + (matrix - matrix.detach())  # zeros, but for autograd

    def __str__(self) -> str:
        scale = "" if self.scale == "row" else f", weight_scale={self.scale!r}"
        return f"weight_bits={self.bits}{scale}"

    @torch.no_grad()
    def codes(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The codes of a matrix, and their scale.

        Args:
            matrix: real, ``(m, n)``, or pairs ``(m, n, 2)`` of a complex one, whose parts share a scale.

        Returns:
            Integers of the shape of the matrix, and alpha: ``()``, or ``(m, 1)`` (pairs: ``(m, 1, 1)``) for "row". Both
            in its dtype, but at least float32: sums of squared codes are beyond float16.
        """
        rows = matrix.reshape(len(matrix) if self.scale == "row" else 1, -1)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        alpha = _above_zero(rows.abs().amax(-1, keepdim=True) / self._most)
        alpha = alpha if self.scale == "max" else self._fitted(rows, alpha)
        codes = self._rounded(rows, alpha)
        if self.scale == "row":  # see Note [Rows keep their lengths]
            alpha = _length(rows) / _length(codes).clamp(min=1)
        shape = (-1, *[1] * (matrix.ndim - 1)) if self.scale == "row" else ()
        return codes.view_as(matrix), alpha.reshape(shape)

    @property
    def _most(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def _rounded(self, rows: Tensor, alpha: Tensor) -> Tensor:
        return (rows / alpha).round().clamp(-self._most, self._most)

    def _fitted(self, rows: Tensor, largest: Tensor) -> Tensor:
        """The alpha ``(rows, 1)`` of the least mean square error; see Note [The scale of least squares]."""
        sums = []
        clipping = [(self.bits / 10) ** (i / (TRIED - 1)) for i in range(TRIED)]
        for factor in clipping + [self._most / (self._most - free) for free in range(1, min(FREE + 1, self._most))]:
            codes = self._rounded(rows, largest * factor)
            sums.append(torch.stack([(rows * codes).sum(-1), (codes * codes).sum(-1)]))
        products, squares = torch.stack(sums, dim=-1)
        fitted = products / squares.clamp(min=1)
        return _above_zero(fitted.gather(-1, (fitted * products).argmax(-1, keepdim=True)))


def _length(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


def _above_zero(alpha: Tensor) -> Tensor:
    """A scale that can be divided by, of zeros as well."""
    return alpha.clamp(min=torch.finfo(alpha.dtype).tiny)


def as_quantiser(bits: int | None, scale: str) -> Quantiser | None:
    """The quantiser of a layer's options; None where its weights keep their precision.

    Raises:
        ValueError: for a number of bits that is not an integer from 2 to 8, or an unknown scale.
    """
    if scale not in SCALES:
        raise ValueError(f"expected weight_scale to be one of {SCALES}, got {scale!r}")
    if bits is None:
        return None
    if not isinstance(bits, int) or isinstance(bits, bool) or not LEAST <= bits <= MOST:
        raise ValueError(f"expected weight_bits to be None or an integer from {LEAST} to {MOST}, got {bits!r}")
    return Quantiser(bits, scale)

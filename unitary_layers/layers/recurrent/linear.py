"""All states of a linear recurrence by pairs of time steps.

The parallel prefix sum of G. Blelloch, "Prefix sums and their applications" (1990), for linear recurrences: E. Martin,
C. Cundy, "Parallelizing linear recurrent neural nets over sequence length", ICLR 2018, arXiv 1709.04057.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base.inputs import HALF

# Note [Pairs of time steps]
# Two steps of h_t = x_t + h_{t-1} M are one step of (x_{t-1} M + x_t) with M^2. So the states at odd times are those of
# a recurrence of half the steps, and one more product gives those at even times: 2 log2 T products of many rows in the
# place of T products of few. All in all they have twice the rows of the loop, and there are the squares of M besides.
# That pays where a step of the loop is so small that the call costs more than the numbers. Forward and backward,
# T = 784, milliseconds of processor time of one thread, by the loop and by pairs: width 64 with one sequence 16.7 and
# 2.5, with 16 sequences 25 and 19; width 128 with two 18.6 and 6.6; width 512 with one 50 and 41, with eight 132 and
# 200. So pairs are for steps of few products and few numbers, and the loop stays for all others.
# The eigenbasis of M pays nowhere. It needs a product of n x n with each row on the way in and another on the way out,
# both complex, where the loop has one. And torch has no eigenvectors of a real normal matrix that are orthogonal to
# rounding: with those of the Hermitian e^{0.7 i} M + e^{-0.7 i} M^H, which commutes with M, states were off by 7e-5 at
# width 64 and by up to 6e-2 at width 512, in float32. Forward it took 9 ms where the loop took 9 (width 64, one
# sequence), and 1,220 where the loop took 272 (width 512, 20 sequences).
# Squares of a unitary matrix drift from the manifold: an error e of M is T e in M^T, as after T steps of the loop.

FEW = 2**16  # products of numbers in a step; moving a number takes as long as some of them


def are_few(sizes: Sequence[int], like: Tensor) -> bool:
    """Whether pairs of steps are faster than single ones, of these states ``(sum(sizes), n)``."""
    is_padded, n = sizes[0] == sizes[-1], like.size(-1)
    return is_padded and len(sizes) > _single(n) and 0 < sizes[0] * n * max(n, 64) <= FEW and like.dtype not in HALF


def by_pairs(x: Tensor, first: Tensor, matrix: Tensor, *, reverse: bool) -> Tensor:
    """``h_t = x_t + h_{t-1} M`` by pairs of steps; see Note [Pairs of time steps].

    Args:
        x: inputs ``(t * batch, n)``, in the order of time.
        first: what is added to the first one ``(batch, n)``.
        matrix: M ``(n, n)``.
        reverse: run from the last time step to the first.

    Returns:
        All states ``(t * batch, n)``.
    """
    steps = x.reshape(-1, *first.shape)
    steps = steps.flip(0) if reverse else steps.clone()
    steps[0] += first
    states = _states(steps, matrix)
    return (states.flip(0) if reverse else states).view_as(x)


def _single(n: int) -> int:
    """How many steps go one by one: a square of the matrix costs as much as some of them."""
    return max(n // 8, 8)


def _states(x: Tensor, matrix: Tensor) -> Tensor:
    """States ``(t, batch, n)`` from zero."""
    states, n = torch.empty_like(x), x.size(-1)
    states[0] = x[0]
    if len(x) <= _single(n):
        for t in range(1, len(x)):
            torch.addmm(x[t], states[t - 1], matrix, out=states[t])
        return states
    odd, even = x[1::2], x[2::2]
    pairs = torch.addmm(odd.reshape(-1, n), x[: 2 * len(odd) : 2].reshape(-1, n), matrix).view_as(odd)
    states[1::2] = after = _states(pairs, matrix @ matrix)
    states[2::2] = torch.addmm(even.reshape(-1, n), after[: len(even)].view(-1, n), matrix).view_as(even)
    return states

"""The exponential of a symmetric operator by Chebyshev polynomials, from products with it alone.

Source: H. Tal-Ezer, R. Kosloff, "An accurate and efficient scheme for propagating the time dependent Schrödinger
equation", Journal of Chemical Physics 81, 1984.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

# Note [Chebyshev series of an exponential]
# For a symmetric A with a spectrum within [-1, 1]
#     exp(i t A) = J_0(t) + 2 sum_k i^k J_k(t) T_k(A),    T_(k+1)(A) x = 2 A T_k(A) x - T_(k-1)(A) x
# with Bessel functions J_k and Chebyshev polynomials T_k. Of all polynomials of its order the sum is nearly the closest
# to the exponential on the whole of [-1, 1]. From k = |t| on its terms fall faster than any power, so the order is the
# first at which what is left out, 2 |J_(k+1)(t)| and so on, sums up to less than the tolerance: an upper bound of the
# error of the operator, and of the error by which it is not unitary.
# As a function of the angle, exp(i t cos(angle)) has the Fourier coefficients i^k J_k(t), so one transform of its
# values gives all of them. They are right to rounding, differentiable in t, and those of many times come together; the
# recurrence downwards in k, the textbook's, serves one time and has no derivative. It is enough to find the order.

# Note [Pairs of channels]
# Real and complex features are one thing here: complex numbers are pairs of neighbouring real channels, and so is every
# pair of channels of real features. i turns a pair by a right angle, J (u, v) = (-v, u). A is real, so
#     exp(i t A) x = cos(t A) x + sin(t A) J x
# which for real features is the orthogonal matrix exp(t A (x) J): the exponential of a Kronecker product that is
# antisymmetric. Even terms of the series make the cosine, odd ones the sine, and all products are with real numbers.

Product = Callable[[Tensor, Tensor | None], Tensor]  # of x and the term before it: 2 A x - before; A x if there is none


@lru_cache(maxsize=1024)
def series_order(time: float, tol: float) -> int:
    """The order of the series of ``exp(i t A)`` whose rest is at most ``tol``; see above.

    Args:
        time: t.
        tol: largest error in the spectral norm.
    """
    if not math.isfinite(time) or abs(time) < tol / 2:  # 2 |J_1(t)| <= |t|
        return 0
    half, log_term, bound = abs(time) / 2, 0.0, 0
    while half and (log_term > math.log(tol / 4) or bound < 2 * half):
        bound += 1  # |J_k(t)| <= (t / 2)^k / k!, and from k = t on each is half the last
        log_term += math.log(half / bound)
    rest = 0.0
    for k, term in enumerate(reversed(_moduli(abs(time), bound))):
        rest += term
        if rest > tol:
            return bound - k
    return 0


def _moduli(time: float, order: int) -> list[float]:
    """The moduli of the terms up to an order at which they have become negligible: ``|J_0|, 2 |J_1|, 2 |J_2|, ...``.

    By Miller's recurrence downwards in numbers of Python: under ``torch.export`` and on a meta device tensors have no
    values that an order could be read from.
    """
    above, value, terms = 0.0, 1.0, [1.0]
    for k in range(order, 0, -1):
        above, value = value, 2 * k / time * value - above
        if abs(value) > 1e200:
            above, value, terms = above * 1e-200, value * 1e-200, [term * 1e-200 for term in terms]
        terms.append(value)
    terms.reverse()
    whole = terms[0] + 2 * sum(terms[2::2])  # J_0 + 2 J_2 + 2 J_4 + ... = 1
    return [abs(term / whole) * (2 if k else 1) for k, term in enumerate(terms)]


def series(times: Tensor, order: int) -> Tensor:
    """The real coefficients of the terms of ``cos(t A)``, of even order, and ``sin(t A)``, of odd order.

    Args:
        times: t ``(...)``, of any shape.
        order: of the last term.

    Returns:
        ``(order + 1, ...)`` in float64; see Note [Chebyshev series of an exponential].
    """
    points = 2 * order + 16
    angles = torch.arange(points, dtype=torch.float64, device=times.device) * (2 * math.pi / points)
    phases = times.to(torch.float64).unsqueeze(-1) * angles.cos()
    terms = torch.fft.rfft(phases.cos() + phases.sin()).real[..., : order + 1].movedim(-1, 0) * (2 / points)
    return torch.cat([terms[:1] / 2, terms[1:]])


def turned(x: Tensor) -> Tensor:
    """J x, each pair of neighbouring channels of ``(..., c)`` turned by a right angle: i x."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-second, first], dim=-1).flatten(-2)


def exponential(product: Product, x: Tensor, times: Tensor, order: int) -> Tensor:
    """``exp(i t A) x`` for pairs of neighbouring channels; see Note [Pairs of channels].

    Args:
        product: of the real symmetric operator A, with a spectrum within [-1, 1], and x.
        x: real, ``(..., c)``, c even.
        times: t, ``()`` or one a pair ``(c / 2,)``.
        order: of the last term; see :func:`series_order`.

    Returns:
        As x.
    """
    terms = series(times, order).to(x.dtype)
    terms = terms.repeat_interleave(2, dim=-1) if times.ndim else terms
    before, current, sums = None, x, [terms[0] * x]
    for k in range(1, order + 1):
        before, current = current, product(current, before)
        if k == 1:
            sums.append(terms[1] * current)
        else:
            sums[k % 2] = torch.addcmul(sums[k % 2], terms[k], current)
    return sums[0] if order == 0 else sums[0] + turned(sums[1])

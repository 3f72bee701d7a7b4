"""Linear recurrences with a diagonal complex matrix over a whole sequence, by products of real matrices."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...linalg.transforms import is_open

# Note [A recurrence as products of matrices]
# h_t = lambda h_(t-1) + v_t, state by state, is a convolution of v with the powers of lambda. In chunks of c steps it
# is a few products of matrices: inside a chunk the states are a triangular c x c matrix times the inputs; the states at
# the ends of the chunks follow a recurrence of the same kind, c times shorter, with lambda^c; and what a chunk starts
# from reaches its j-th step by lambda^j. So T steps take log_c(T) levels and O(T c log_c T) operations, there is no
# loop over time. How many levels there are depends on T; an export that is to take any T gets a convolution by FFTs in
# their place. On one core (128 states, 784 steps, batch 50, forward and backward) FFTs took 1.2 times as long for 128
# features, and for one feature, whose states the chunks never form, 3 times. Complex numbers are pairs of real ones,
# the real part first: real products are what compilers and exporters know.

CHUNK = 16  # steps


class Spectrum(NamedTuple):
    """The diagonal ``lambda = gamma exp(i theta)`` of a recurrence with n states.

    Attributes:
        log_gamma: ``(n,)``, at most 0; None for gamma = 1.
        theta: ``(n,)``, radians, in float64: the angle of a far power is a large multiple of it.
    """

    log_gamma: Tensor | None
    theta: Tensor

    def powers(self, exponents: Tensor, dtype: torch.dtype) -> Tensor:
        """``lambda^t`` for whole t ``(t,)``, as pairs ``(2, t, n)``."""
        angle = torch.remainder(exponents[:, None] * self.theta, 2 * math.pi).to(dtype)
        pairs = torch.stack((angle.cos(), angle.sin()))
        if self.log_gamma is None:
            return pairs
        return pairs * (exponents[:, None] * self.log_gamma).exp().to(dtype)

    def to_the(self, exponent: int) -> "Spectrum":
        """The spectrum of that many steps taken as one."""
        return Spectrum(None if self.log_gamma is None else exponent * self.log_gamma, exponent * self.theta)


def times(a: Tensor, b: Tensor) -> Tensor:
    """Product, entry by entry, of two complex tensors that are pairs ``(2, ...)``."""
    (a_re, a_im), (b_re, b_im) = a.unbind(), b.unbind()
    return torch.stack((a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re))


def real_rows(a: Tensor) -> Tensor:
    """Of a complex matrix, pairs ``(2, ..., m, n)``, what a real product takes real parts by: ``[Re a, -Im a]``."""
    re, im = a.unbind()
    return torch.cat((re, -im), -1)


def triangular(values: Tensor, dim: int) -> Tensor:
    """``values[i - j]`` at ``(i, j)`` and zero above the diagonal: two dimensions (c, c) in the place of one."""
    c = values.size(dim)
    lags = torch.arange(c, device=values.device)
    lags = lags[:, None] - lags
    picked = values.index_select(dim, lags.clamp(min=0).flatten()).unflatten(dim, (c, c))
    return picked * (lags >= 0).to(values.dtype).view(c, c, *[1] * (values.dim() - 1 - dim))


def strided(x: Tensor, dim: int, stride: int) -> Tensor:
    """Every entry of that many along a dimension, from ``stride - 1`` on; by indices, which exporters take."""
    if stride == 1:
        return x
    return x.index_select(dim, torch.arange(x.size(dim) // stride, device=x.device) * stride + stride - 1)


def last_state(
    x: Tensor, spectrum: Spectrum, weight: Tensor, h_0: Tensor | None, lengths: Tensor | None = None
) -> Tensor:
    """The state after the last step of ``h_t = lambda h_(t-1) + weight x_t``, a weighted sum over time.

    Args:
        x: ``(b, t, p)``.
        spectrum: of n states.
        weight: pairs ``(2, n, p)``.
        h_0: pairs ``(2, n, b)``, or None for zeros.
        lengths: how many steps ago that was, ``(b,)``; None for t. What stands before is to be zero.

    Returns:
        Pairs ``(2, n, b)``.
    """
    ages = torch.arange(x.size(1) - 1, -1, -1, device=x.device)
    powers = spectrum.powers(ages, x.dtype).transpose(1, 2).flatten(0, 1)
    seen = (powers @ x.transpose(0, 1).flatten(1)).unflatten(1, x.shape[::2]).unflatten(0, (2, -1))  # pairs, n, b, p
    re, im = (part @ weight.permute(1, 2, 0) for part in seen.unbind())  # n, b, pairs
    h = torch.stack((re[..., 0] - im[..., 1], re[..., 1] + im[..., 0]))
    if h_0 is None:
        return h
    since = ages[:1] + 1 if lengths is None else lengths.to(x.device)
    return h + times(spectrum.powers(since, x.dtype).mT, h_0)


def all_states(v: Tensor, spectrum: Spectrum, h_0: Tensor | None) -> Tensor:
    """The states ``h_t = lambda h_(t-1) + v_t``; see Note [A recurrence as products of matrices].

    Args:
        v: pairs ``(2, n, b, t)``.
        spectrum: of n states.
        h_0: pairs ``(2, n, b)``, or None for zeros.

    Returns:
        Pairs ``(2, n, b, t)``.
    """
    steps = v.size(-1)
    if is_open(steps):
        return _all_states_by_fft(v, spectrum, h_0)
    chunk = min(steps, CHUNK)
    chunks = -(-steps // chunk)
    powers = spectrum.powers(torch.arange(chunk + 1, device=v.device), v.dtype).mT  # pairs, n, exponents
    v = F.pad(v, (0, chunks * chunk - steps)).unflatten(-1, (chunks, chunk)).flatten(2, 3)
    (v_re, v_im), (w_re, w_im) = v.unbind(), triangular(powers[..., :-1], 2).mT.unbind()
    h = torch.stack((v_re @ w_re - v_im @ w_im, v_re @ w_im + v_im @ w_re)).unflatten(2, (-1, chunks))
    starts = None if h_0 is None else h_0[..., None]
    if chunks > 1:
        starts = states_before(h[..., -1], spectrum.to_the(chunk), h_0)
    if starts is not None:
        h = h + times(powers[:, :, None, None, 1:], starts[..., None])
    return h.flatten(-2)[..., :steps]


def states_before(v: Tensor, spectrum: Spectrum, h_0: Tensor | None) -> Tensor:
    """As :func:`all_states`, one step earlier: the state before each step, the first of them ``h_0``."""
    first = torch.zeros_like(v[..., :1]) if h_0 is None else h_0[..., None]
    return torch.cat((first, all_states(v, spectrum, h_0)[..., :-1]), -1)


def _all_states_by_fft(v: Tensor, spectrum: Spectrum, h_0: Tensor | None) -> Tensor:
    """The same as a convolution, whose operations do not depend on the number of steps."""
    steps = v.size(-1)
    powers = torch.complex(*spectrum.powers(torch.arange(steps + 1, device=v.device), v.dtype).mT)  # n, exponents
    spectra = torch.fft.fft(torch.complex(*v), 2 * steps) * torch.fft.fft(powers[:, None, :-1], 2 * steps)
    h = torch.fft.ifft(spectra)[..., :steps]
    if h_0 is not None:
        h = h + powers[:, None, 1:] * torch.complex(*h_0)[..., None]
    return torch.stack((h.real, h.imag))


def outputs_of_narrow(
    x: Tensor, spectrum: Spectrum, weight: Tensor, basis: Tensor, skip: Tensor | None, h_0: Tensor | None, stride: int
) -> Tensor:
    r"""``Re(Q h_t) + D x_t`` of a narrow input, without the states: one product of matrices and small ones.

    Inside a chunk the outputs are a convolution of the inputs with the kernels ``Re(Q lambda^j weight)``; what the
    chunk starts from adds ``Re(Q lambda^j h)``. Both are rows of one matrix, ``(c p + 2 n) x (c n)``.

    Args:
        x: ``(b, t, p)``, of few features p.
        spectrum: of n states.
        weight: pairs ``(2, n, p)``.
        basis: Q, pairs ``(2, m, n)``.
        skip: D ``(m, p)``, or None.
        h_0: pairs ``(2, n, b)``, or None for zeros.
        stride: steps from one output to the next.

    Returns:
        ``(b, t // stride, m)``, the outputs after steps ``stride``, ``2 stride``, ...
    """
    steps, features = x.size(1), x.size(2)
    chunk = stride * max(1, 2 * CHUNK // stride)
    chunks = -(-steps // chunk)
    powers = spectrum.powers(torch.arange(chunk + 1, device=x.device), x.dtype)  # pairs, exponents, n
    x = F.pad(x, (0, 0, 0, chunks * chunk - steps)).unflatten(1, (chunks, chunk)).permute(2, 3, 0, 1).flatten(0, 1)
    reach = times(powers[:, :-1, :, None], weight[:, None]).transpose(1, 2)  # lambda^j weight: pairs, n, c, p
    ends = (reach.flip(2).flatten(2) @ x.flatten(1)).unflatten(-1, x.shape[1:])
    starts = states_before(ends, spectrum.to_the(chunk), h_0)
    kernel = (real_rows(basis) @ reach.flatten(0, 1).flatten(1)).unflatten(-1, (chunk, features))  # m, c, p
    if skip is not None:
        kernel = torch.cat((kernel[:, :1] + skip[:, None], kernel[:, 1:]), 1)
    of_x = triangular(kernel, 1)[:, stride - 1 :: stride].permute(2, 3, 1, 0)  # c, p, c / stride, m
    of_h = real_rows(times(basis[:, None], powers[:, stride::stride, None])).permute(2, 0, 1)  # 2 n, c / stride, m
    rows = torch.cat((x.flatten(1), starts.flatten(0, 1).flatten(1)))
    y = rows.mT @ torch.cat((of_x.flatten(0, 1), of_h)).flatten(1)
    return y.unflatten(1, (-1, basis.size(1))).unflatten(0, x.shape[1:]).flatten(1, 2)[:, : steps // stride]

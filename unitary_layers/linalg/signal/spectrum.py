"""The spectrum of a real signal on a periodic grid: its independent bins, the transform there and back, products there.

Source: A. Trockman, J. Z. Kolter, "Orthogonalizing convolutional layers with the Cayley transform", ICLR 2021,
arXiv 2104.07167 (a circular convolution is orthogonal if and only if its blocks in the Fourier domain are unitary).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Note [Independent bins]
# The spectrum of a real signal is conjugate at f and -f, so that a convolution with real numbers has blocks
# W(-f) = conj W(f). On the few bins with f = -f (each frequency 0 or, for an even side, half of it) the block is real;
# of all other bins one of each pair {f, -f} is independent. Unitary blocks drawn on all of the half-spectrum that rfftn
# returns would not do: its first and (even width) last column hold both f and -f.


class Bins(NamedTuple):
    """Where the independent bins of a real signal lie in the half-spectrum of ``torch.fft.rfftn``, flattened.

    Attributes:
        real: the s self-conjugate bins ``(s,)``.
        pairs: one of each of the p conjugate pairs ``(p,)``.
        mirrored: all others, the conjugates of some pairs.
        sources: for each bin of the half-spectrum ``(q,)`` the row of ``[real, pairs, conj(pairs)]`` that fills it.
    """

    real: Tensor
    pairs: Tensor
    mirrored: Tensor
    sources: Tensor


def frequencies(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Self-conjugate bins ``(s,)`` and one of each conjugate pair ``(p,)``, as flat indices of the full spectrum."""
    grid, negative = _grid_and_negative(size)
    half = _range(size[-1]) <= size[-1] // 2
    both = half[negative % size[-1]]  # bins whose negative lies in the half-spectrum too
    first = half.expand(size) & (~both | (grid < negative))
    return grid[grid == negative], grid[first & (grid != negative)]


def bins_of(size: tuple[int, ...]) -> Bins:
    """The independent bins of a real signal on a grid of this size; s + 2 p is the number of its points."""
    grid, negative = _grid_and_negative(size)
    width = size[-1] // 2 + 1
    real, pairs = frequencies(size)
    row = torch.full_like(grid, -1).flatten()
    row[real] = _range(len(real))
    row[pairs] = len(real) + _range(len(pairs))
    row[negative.flatten()[pairs]] = len(real) + len(pairs) + _range(len(pairs))
    place = _range(grid.numel() // size[-1] * width).reshape(*size[:-1], width)
    place = nn.functional.pad(place, (0, size[-1] - width)).flatten()
    sources = row.reshape(size)[..., :width].flatten()
    mirrored = (sources >= len(real) + len(pairs)).nonzero().squeeze(1)
    return Bins(place[real], place[pairs], mirrored, sources)


def real_dft_basis(size: tuple[int, ...]) -> Tensor:
    """The orthonormal real basis of the discrete Fourier transform, float64 ``(n, n)`` for a grid of n points.

    Its rows belong to the s self-conjugate bins, then to the real parts of the p pairs, then to their imaginary parts
    (both times the square root of 2); the columns to the points of the grid, the last side fastest.
    """
    real, pairs = frequencies(size)
    turns = torch.zeros(len(real) + len(pairs), math.prod(size), dtype=torch.float64, device="cpu")
    for dim, n in enumerate(size):
        below = math.prod(size[dim + 1 :])
        frequency = torch.cat([real, pairs]) // below % n
        place = _range(math.prod(size)) // below % n
        turns += (frequency[:, None] * place % n).double() / n  # whole turns drop out before any rounding
    angles = 2 * math.pi * turns
    cos, sin = angles.cos(), angles.sin()
    rows = torch.cat([cos[: len(real)], math.sqrt(2) * cos[len(real) :], -math.sqrt(2) * sin[len(real) :]])
    return rows / math.sqrt(math.prod(size))


# Note [Two transforms, one map]
# On a small grid the transform is a product with the real basis: it lands in the layout that the products with the
# blocks want, bin by bin, and with nothing complex in the graph autocast, export and tensor cores apply. On a large
# one it is rfftn. Both return real numbers, complex ones as pairs (..., 2), and differ by a factor sqrt(2) at the pairs
# that the way back undoes.


def to_bins_by_basis(x: Tensor, basis: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """The bins of ``x`` ``(b, c, *size)``: real ones ``(s, b, c)``, and pairs ``(p, b, c, 2)``."""
    rows = basis @ x.flatten(2).flatten(end_dim=1).mT
    real, re, im = rows.unflatten(-1, x.shape[:2]).tensor_split((s, (s + len(rows)) // 2))
    return real, torch.stack([re, im], dim=-1)


def from_bins_by_basis(real: Tensor, pairs: Tensor, basis: Tensor, size: tuple[int, ...]) -> Tensor:
    """The signal ``(b, c, *size)`` of the bins ``(s, b, c)`` and ``(p, b, c, 2)``."""
    rows = torch.cat([real, pairs[..., 0], pairs[..., 1]])
    return (rows.flatten(1).mT @ basis).reshape(*real.shape[1:], *size)


class ToBinsByFFT(torch.autograd.Function):
    """The bins of a signal as :func:`to_bins_by_basis` returns them, by rfftn; see Note [Two transforms, one map].

    The transform is orthogonal but for a factor at the pairs, so its backward is the inverse with that factor squared.
    """

    @staticmethod
    def forward(x: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
        dims = tuple(range(2, x.ndim))
        if x.numel() == 0:  # MKL refuses it
            spectrum = x.new_zeros(*x.shape[:-1], x.size(-1) // 2 + 1, dtype=x.dtype.to_complex())
        else:
            spectrum = torch.fft.rfftn(x, dim=dims, norm="ortho")
        spectrum = spectrum.flatten(2).permute(2, 0, 1)
        return spectrum[bins.real].real.contiguous(), torch.view_as_real(spectrum[bins.pairs].contiguous())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Bins], output: tuple[Tensor, Tensor]) -> None:
        ctx.bins, ctx.size = inputs[1], tuple(inputs[0].shape[2:])

    @staticmethod
    def backward(ctx: Any, real: Tensor, pairs: Tensor) -> tuple[Tensor, None]:
        return FromBinsByFFT.apply(real, pairs / 2, ctx.bins, ctx.size), None


class FromBinsByFFT(torch.autograd.Function):
    """The inverse of :class:`ToBinsByFFT`."""

    @staticmethod
    def forward(real: Tensor, pairs: Tensor, bins: Bins, size: tuple[int, ...]) -> Tensor:
        shape = (*real.shape[1:], *size[:-1], size[-1] // 2 + 1)
        if math.prod(shape) == 0:
            return real.new_zeros(*shape[:2], *size)
        # Each bin to its place, in the layout that the transform wants: half the time of a gather and a transposition.
        independent = torch.view_as_complex(pairs.contiguous()).permute(1, 2, 0)
        flat = independent.new_empty(*shape[:2], len(bins.sources))
        flat[..., bins.real] = real.permute(1, 2, 0).to(flat.dtype)
        flat[..., bins.pairs] = independent
        partners = bins.sources[bins.mirrored] - len(bins.real) - len(bins.pairs)
        flat[..., bins.mirrored] = independent[..., partners].conj()
        spectrum = flat.view(shape)
        return torch.fft.irfftn(spectrum, s=size, dim=tuple(range(2, spectrum.ndim)), norm="ortho")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Bins, tuple[int, ...]], output: Tensor) -> None:
        ctx.bins = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        real, pairs = ToBinsByFFT.apply(grad, ctx.bins)
        return real, pairs * 2, None, None


def to_bins_by_fft(x: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """:class:`ToBinsByFFT` as plain operations; what is complex in them is the transform alone, as ONNX demands."""
    spectrum = torch.view_as_real(torch.fft.rfftn(x, dim=tuple(range(2, x.ndim)), norm="ortho"))
    spectrum = spectrum.flatten(2, -2).permute(2, 0, 1, 3)
    return spectrum[bins.real][..., 0], spectrum[bins.pairs]


def from_bins_by_fft(real: Tensor, pairs: Tensor, bins: Bins, size: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`to_bins_by_fft`."""
    re, im = pairs.unbind(-1)
    spectrum = torch.cat([nn.functional.pad(real[..., None], (0, 1)), pairs, torch.stack([re, -im], dim=-1)])
    spectrum = spectrum[bins.sources].permute(1, 2, 0, 3).unflatten(2, (*size[:-1], -1)).contiguous()
    dims = tuple(range(2, 2 + len(size)))
    return torch.fft.irfftn(torch.view_as_complex(spectrum), s=size, dim=dims, norm="ortho")


# The ways there and back: with a backward of their own, and as autograd records them.
FFT_NODES = (ToBinsByFFT.apply, FromBinsByFFT.apply)
FFT_PLAIN = (to_bins_by_fft, from_bins_by_fft)


def pair_matmul(z: Tensor, w: Tensor) -> Tensor:
    """``z w^T`` of complex numbers stored as pairs: ``(..., b, i, 2)`` times ``(..., o, i, 2)`` to ``(..., b, o, 2)``.

    In float32 and float64 as a complex product; in half precision, and where a compiler or an exporter looks on, as a
    real one of twice the size: the rows (re, -im) and (im, re) against the stored pairs.
    """
    if z.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling():
        return torch.view_as_real(torch.view_as_complex(z.contiguous()) @ torch.view_as_complex(w.contiguous()).mT)
    re, im = z.unbind(-1)
    rows = torch.cat([torch.stack([re, -im], dim=-1), torch.stack([im, re], dim=-1)], dim=-3)
    product = (rows.flatten(-2) @ w.flatten(-2).mT).unflatten(-2, (2, -1))  # chunk would ask for the size of the batch
    return torch.stack(product.unbind(-3), dim=-1)


def mirrored(real: Tensor, pairs: Tensor, size: tuple[int, ...]) -> Tensor:
    """The full spectrum ``(*size, ...)`` of real bins ``(s, ...)`` and complex ones ``(p, ...)``."""
    grid, negative = _grid_and_negative(size)
    of_real, of_pairs = frequencies(size)
    order = torch.cat([of_real, of_pairs, negative.flatten()[of_pairs]]).to(real.device)
    spectrum = torch.cat([torch.complex(real, torch.zeros_like(real)), pairs, pairs.conj()])
    return spectrum[order.argsort()].unflatten(0, grid.shape)


def _grid_and_negative(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Flat indices of the full spectrum, and at each place f that of -f."""
    dims = tuple(range(len(size)))
    grid = _range(math.prod(size)).reshape(size)
    return grid, grid.flip(dims).roll((1,) * len(size), dims)


def _range(n: int) -> Tensor:
    return torch.arange(n, device="cpu")  # the default device may be meta, which has no values

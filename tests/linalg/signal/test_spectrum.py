"""The spectrum of a real signal: bins, both transforms, their adjoints, and products of pairs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import eps

from unitary_layers.linalg.signal.spectrum import (
    FFT_NODES,
    FFT_PLAIN,
    FromBinsByFFT,
    ToBinsByFFT,
    bins_of,
    frequencies,
    from_bins_by_basis,
    mirrored,
    pair_matmul,
    real_dft_basis,
    to_bins_by_basis,
)

grids = st.one_of(
    st.tuples(st.integers(1, 9)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
)


@given(grids)
def test_bins_are_independent_and_complete(size):
    n = math.prod(size)
    real, pairs = frequencies(size)
    place = torch.stack(torch.unravel_index(torch.arange(n), size))
    negative = torch.tensor(size)[:, None].sub(place) % torch.tensor(size)[:, None]
    flat = [int(torch.arange(n).reshape(size)[tuple(column)]) for column in negative.T]
    assert real.tolist() == [f for f in range(n) if flat[f] == f]
    assert len(real) == math.prod(2 if side % 2 == 0 else 1 for side in size)
    mirrors = {flat[f] for f in pairs.tolist()}
    assert sorted([*real.tolist(), *pairs.tolist(), *mirrors]) == list(range(n))
    assert all(f % size[-1] <= size[-1] // 2 for f in pairs.tolist())  # they lie where rfftn has them


@given(grids)
def test_the_basis_is_orthonormal_and_is_the_fourier_transform(size):
    n = math.prod(size)
    basis = real_dft_basis(size)
    assert (basis @ basis.mT - torch.eye(n, dtype=basis.dtype)).abs().max() <= 10 * n * eps(basis.dtype)
    x = torch.randn(n, dtype=torch.float64)
    spectrum = torch.fft.fftn(x.reshape(size), norm="ortho").flatten()
    real, pairs = frequencies(size)
    rows = [spectrum[real].real, math.sqrt(2) * spectrum[pairs].real, math.sqrt(2) * spectrum[pairs].imag]
    assert (basis @ x - torch.cat(rows)).abs().max() <= 10 * n * eps(basis.dtype)


@given(grids)
def test_both_transforms_return_the_same_bins_and_come_back(size):
    basis, bins = real_dft_basis(size), bins_of(size)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    tolerance = 10 * basis.size(0) * eps(x.dtype)
    by_basis = to_bins_by_basis(x, basis, len(bins.real))
    for there, back in (FFT_NODES, FFT_PLAIN):
        real, pairs = there(x, bins)
        assert (real - by_basis[0]).abs().max() <= tolerance
        assert torch.allclose(pairs * math.sqrt(2), by_basis[1], rtol=0, atol=tolerance)
        assert (back(real, pairs, bins, size) - x).abs().max() <= tolerance
    assert (from_bins_by_basis(*by_basis, basis, size) - x).abs().max() <= tolerance


@pytest.mark.parametrize("size", [(5,), (6,), (3, 4), (4, 3), (2, 3, 2)])
def test_gradients_of_the_fast_transform(size):
    bins = bins_of(size)
    x = torch.randn(2, 1, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ToBinsByFFT.apply(x, bins), x)
    assert torch.autograd.gradgradcheck(lambda x: ToBinsByFFT.apply(x, bins), x)
    real, pairs = (part.detach().requires_grad_() for part in ToBinsByFFT.apply(x, bins))
    assert torch.autograd.gradcheck(lambda r, p: FromBinsByFFT.apply(r, p, bins, size), (real, pairs))


@given(grids)
def test_mirrored_is_the_spectrum_of_a_real_signal(size):
    x = torch.randn(*size, dtype=torch.float64)
    spectrum = torch.fft.fftn(x)
    real, pairs = frequencies(size)
    found = mirrored(spectrum.flatten()[real].real, spectrum.flatten()[pairs], size)
    assert (found - spectrum).abs().max() <= 10 * x.numel() * eps(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_products_of_pairs_are_complex_products(dtype):
    z, w = torch.randn(3, 2, 4, 5, 2).to(dtype), torch.randn(3, 2, 6, 5, 2).to(dtype)
    product = pair_matmul(z, w)
    slow = torch.view_as_complex(z.double()) @ torch.view_as_complex(w.double()).mT
    assert product.dtype == dtype
    bound = 10 * torch.view_as_complex(z.double()).abs() @ torch.view_as_complex(w.double()).abs().mT * eps(dtype)
    assert ((torch.view_as_complex(product.double()) - slow).abs() <= bound).all()

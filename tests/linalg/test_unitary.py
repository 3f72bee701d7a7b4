"""Haar matrices, the nearest unitary matrix, and the measure of unitarity."""

import math

import pytest
import torch
from hypothesis import given
from strategies import DTYPES, batches, dtypes, eps, seeds, sizes, wide
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, vmap
from torch.utils.flop_counter import FlopCounterMode

from unitary_layers.linalg import haar_unitary, nearest_unitary, unitarity_error
from unitary_layers.testing import assert_unitary


@given(sizes, batches, dtypes, seeds)
def test_haar_is_unitary_contiguous_and_reproducible(n, batch, dtype, seed):
    first, second = (
        haar_unitary(n, batch=batch, dtype=dtype, generator=torch.Generator().manual_seed(seed)) for _ in range(2)
    )
    assert first.shape == (*batch, n, n)
    assert first.dtype == dtype
    assert first.is_contiguous()
    assert torch.equal(first, second)
    # rounded once: an entry is off by at most eps / 2 of itself, W^H W by eps |W|_F^2 / n = eps in each entry; and QR
    # in float64 has an error of its own
    assert unitarity_error(first).max() <= n * eps(dtype) + 10 * n * eps(torch.float64)


def test_haar_moments():
    # E |tr U|^2 = 1 for the unitary and the orthogonal group (n >= 2), E tr U = 0; without the sign fix the mean of
    # tr Q is far from 0 (Mezzadri, section 5).
    draws = 4000
    for dtype in (torch.float64, torch.complex128):
        trace = haar_unitary(4, batch=(draws,), dtype=dtype, generator=torch.Generator().manual_seed(1))
        trace = trace.diagonal(dim1=-2, dim2=-1).sum(-1)
        assert abs(trace.mean()) < 4 / math.sqrt(draws)
        assert abs(trace.abs().square().mean() - 1) < 4 * math.sqrt(3 / draws)


def test_haar_refuses_a_negative_size():
    with pytest.raises(ValueError, match="n >= 0, got -1"):
        haar_unitary(-1)


@given(sizes, sizes, batches, dtypes, seeds)
def test_nearest_unitary_is_the_polar_factor(m, n, batch, dtype, seed):
    x = torch.randn(*batch, m, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    u, s, vh = torch.linalg.svd(wide(x), full_matrices=False)
    nearest = nearest_unitary(x)
    assert nearest.dtype == dtype
    assert nearest.is_contiguous()
    # rounding of x moves the factor by eps |x| / s_min, the result is rounded once more
    allowed = 4 * max(m, n) * eps(dtype) + 8 * eps(torch.float64) * float(s.amax() / s.amin())
    assert torch.linalg.matrix_norm(wide(nearest) - u @ vh).max() <= allowed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 6), (3, 9, 4), (2, 4, 9)])
def test_near_the_manifold_both_ways_agree(dtype, shape):
    n = max(shape[-2:])
    x = haar_unitary(n, batch=shape[:-2], dtype=dtype)[..., : shape[-2], : shape[-1]]
    x = x + 0.03 * torch.randn(shape, dtype=dtype)
    assert unitarity_error(x).max() < 0.5  # the way by Newton-Schulz
    u, _, vh = torch.linalg.svd(wide(x), full_matrices=False)
    assert torch.linalg.matrix_norm(wide(nearest_unitary(x)) - u @ vh).max() <= 10 * n * eps(dtype)
    assert_unitary(nearest_unitary(x))


@pytest.mark.parametrize("error", [1e-6, 1e-4, 1e-2, 0.4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_repair_is_exact_from_wherever_it_starts_and_cheap_near_the_manifold(dtype, error):
    n = 24
    exact = haar_unitary(n, dtype=torch.promote_types(dtype, torch.float64))
    x = exact + torch.randn(n, n, dtype=exact.dtype) * (error / 2 / n)  # |X^H X - I| is about twice |X - exact|
    u, _, vh = torch.linalg.svd(wide(x.to(dtype)))
    with FlopCounterMode(display=False) as flops:
        nearest = nearest_unitary(x.to(dtype))
    assert torch.linalg.matrix_norm(wide(nearest) - u @ vh) <= n * eps(dtype) + 10 * n * eps(torch.float64)
    rounds = flops.get_total_flops() / (2 * n**3) / 2  # of two products; the first of them measures the error
    assert 1 <= rounds <= {1e-6: 1, 1e-4: 2, 1e-2: 3, 0.4: 6}[error] + (eps(dtype) < 1e-9)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_nearest_unitary_does_not_depend_on_scale(factor):
    x = torch.randn(5, 5)
    torch.testing.assert_close(nearest_unitary(x * factor), nearest_unitary(x), rtol=0, atol=5 * 5 * eps(x.dtype) * 10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("largest", [1e200, torch.finfo(torch.float64).max])
def test_what_overflows_next_to_what_is_unitary_becomes_unitary_too(largest, dtype):
    hadamard = torch.tensor([[1, 1], [1, -1]], dtype=dtype)
    nearest = nearest_unitary(torch.stack([torch.eye(2, dtype=dtype), largest * hadamard]))
    torch.testing.assert_close(nearest[1], hadamard / math.sqrt(2), rtol=0, atol=10 * eps(dtype))
    assert_unitary(nearest)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nearest_unitary_refuses_what_is_not_finite(value):
    x = torch.eye(3)
    x[1, 2] = value
    with pytest.raises(ValueError, match=r"expected a finite matrix.*\(3, 3\)"):
        nearest_unitary(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 1.0])
def test_nearest_unitary_under_transforms(dtype, noise):
    w = haar_unitary(4, batch=(3,), dtype=dtype) + noise * torch.randn(3, 4, 4, dtype=dtype)
    torch.testing.assert_close(vmap(nearest_unitary)(w), nearest_unitary(w), rtol=0, atol=64 * eps(dtype))
    assert torch.autograd.gradcheck(nearest_unitary, (w[0].requires_grad_(),))


def places(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Matrices at which the polar factor has a derivative, by where they lie."""
    haar = haar_unitary(4, dtype=dtype)
    return {
        "identity": torch.eye(2, dtype=dtype),
        "on the manifold": haar,
        "near the manifold": haar + 1e-3 * torch.randn_like(haar),
        "equal singular values": 2 * haar,
        "far": torch.randn_like(haar) + 2 * haar,
        "orthonormal columns": haar[:, :2].clone(),
        "tall": torch.randn(5, 2, dtype=dtype),
        "wide": torch.randn(2, 5, dtype=dtype),
        "batch": torch.stack([haar, 2 * haar]),
    }


def loss(w: torch.Tensor) -> torch.Tensor:
    """A function of the nearest unitary matrix whose second derivatives are not zero."""
    nearest = nearest_unitary(w)
    weights = torch.linspace(1, 2, nearest.numel(), dtype=torch.float64).reshape(nearest.shape)
    real = torch.view_as_real(nearest).sum(-1) if nearest.is_complex() else nearest
    return (weights * (real + 1).pow(2)).sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("place", list(places(torch.float64)))
def test_derivatives_are_those_of_the_polar_factor_everywhere(place, dtype):
    w = places(dtype)[place].requires_grad_()
    assert gradcheck(nearest_unitary, (w,), check_batched_grad=True)
    assert gradgradcheck(nearest_unitary, (w,), check_batched_grad=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("place", list(places(torch.float64)))
def test_torch_func_finds_the_same_derivatives(place, dtype):
    w = places(dtype)[place]
    (expected,) = torch.autograd.grad(loss(w.requires_grad_()), w)
    allowed = {"rtol": 0, "atol": 1e3 * eps(dtype) * float(expected.abs().amax())}
    w = w.detach()
    torch.testing.assert_close(grad(loss)(w), expected, **allowed)
    torch.testing.assert_close(vmap(grad(loss))(torch.stack([w, -w]))[0], expected, **allowed)
    if not dtype.is_complex:  # those of complex numbers torch.func leaves to us
        allowed["atol"] *= 10
        torch.testing.assert_close(jacrev(grad(loss))(w), torch.autograd.functional.hessian(loss, w), **allowed)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own use of it
def test_a_derivative_in_forward_mode_is_refused():
    with pytest.raises(RuntimeError, match="jvp"):
        jacfwd(loss)(torch.eye(2, dtype=torch.float64))


def test_the_meta_device_knows_the_shape():
    nearest = nearest_unitary(torch.empty(2, 5, 3, device="meta"))
    assert nearest.is_meta
    assert nearest.shape == (2, 5, 3)


def test_what_is_unitary_already_is_copied():
    w = torch.eye(3, dtype=torch.float64)
    assert torch.equal(nearest_unitary(w), w)
    assert nearest_unitary(w).data_ptr() != w.data_ptr()


def test_nearest_unitary_of_a_singular_matrix_is_unitary():
    assert_unitary(nearest_unitary(torch.zeros(4, 4)))
    assert_unitary(nearest_unitary(torch.ones(4, 4, dtype=torch.complex64)))


def test_unitarity_error_is_the_frobenius_norm():
    assert unitarity_error(2 * torch.eye(4)) == 6  # 4 I - I, of norm 3 sqrt(4)
    assert unitarity_error(torch.eye(3, 5)) == 0  # wide: the rows
    assert unitarity_error(torch.eye(5, 3)) == 0
    assert unitarity_error(torch.zeros(2, 7, 3, 3)).shape == (2, 7)
    assert unitarity_error(1j * torch.eye(3)).dtype == torch.float32  # i I is unitary; a transpose would say 2 sqrt(3)
    assert unitarity_error(1j * torch.eye(3)) == 0

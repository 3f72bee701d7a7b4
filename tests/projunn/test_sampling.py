"""The samplers against the best approximation, their expected errors, and what may not matter: scale and rank."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, batches, dtypes, eps, seeds, sizes, wide
from torch import Tensor

from unitary_layers.linalg import LowRank, haar_unitary
from unitary_layers.projunn import DenseGradient, low_rank
from unitary_layers.projunn.sampling import SAMPLERS, projected, recompressed

NAMES = tuple(SAMPLERS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error(matrix: Tensor, k: int, sampler: str, seed: int) -> Tensor:
    """Squared Frobenius error of an approximation."""
    return torch.linalg.matrix_norm(low_rank(matrix, k, sampler, generator(seed)).matrix() - matrix).square()


def decaying(n: int, ratio: float) -> tuple[Tensor, Tensor]:
    """A float64 matrix with singular values ratio^j, and these."""
    s = ratio ** torch.arange(n, dtype=torch.float64)
    u, v = (haar_unitary(n, dtype=torch.float64, generator=generator(i)) for i in (1, 2))
    return u * s @ v.mH, s


@given(sizes, sizes, batches, dtypes, seeds, st.data())
def test_svd_is_optimal(m, n, batch, dtype, seed, data):
    k = data.draw(st.integers(1, min(m, n)))
    x = torch.randn(*batch, m, n, dtype=dtype, generator=generator(seed))
    result = low_rank(x, k, "svd")
    assert result.left.shape == (*batch, m, k)
    assert result.right.shape == (*batch, n, k)
    tail = torch.linalg.svdvals(wide(x))[..., k:].square().sum(-1).sqrt()
    achieved = torch.linalg.matrix_norm(wide(result.left) @ wide(result.right).mH - wide(x))
    assert ((achieved - tail).abs() <= 20 * max(m, n) * eps(dtype) * torch.linalg.matrix_norm(wide(x))).all()


@given(sizes, sizes, batches, dtypes, seeds, st.sampled_from(NAMES), st.data())
def test_a_matrix_of_low_rank_is_found_exactly(m, n, batch, dtype, seed, sampler, data):
    # also when its rank is below k: the degenerate gradient that must not leave the manifold
    k = data.draw(st.integers(1, min(m, n)))
    rank = data.draw(st.integers(0, k)) if sampler != "column" else min(k, 1)
    g = generator(seed)
    left, right = (
        torch.randn(*batch, m, rank, dtype=dtype, generator=g),
        torch.randn(*batch, n, rank, dtype=dtype, generator=g),
    )
    x = left @ right.mH
    result = low_rank(x, k, sampler, generator(seed))
    assert torch.isfinite(result.left).all()
    assert torch.isfinite(result.right).all()
    # the test matrix times x may be ill-conditioned, though never by much for a Gaussian one
    factors = torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)
    assert (torch.linalg.matrix_norm(result.matrix() - x) <= 1000 * max(m, n) * eps(dtype) * factors + 1e-300).all()


def test_expected_error_of_lsi():
    # Halko et al., theorem 10.5, for k = r + p: E |x - x_k|^2 <= (1 + r / (p - 1)) sum_{j > r} s_j^2, best r taken
    x, s = decaying(24, 0.8)
    for k in (4, 8):
        bound = min((1 + r / (k - r - 1)) * float(s[r:].square().sum()) for r in range(1, k - 1))
        mean = torch.stack([error(x, k, "lsi", seed) for seed in range(200)]).mean()
        assert float(s[k:].square().sum()) <= mean <= bound


def test_expected_error_of_column_sampling():
    # Drineas et al., theorem 2: E |x - U U^H x|^2 <= |x - x_k|^2 + 2 sqrt(k / c) |x|^2
    x, s = decaying(60, 0.9)
    for k in (1, 4):
        columns = 4 * k + 4
        bound = float(s[k:].square().sum() + 2 * math.sqrt(k / columns) * s.square().sum())
        mean = torch.stack([error(x, k, "column", seed) for seed in range(200)]).mean()
        assert float(s[k:].square().sum()) <= mean <= bound


def test_column_sampling_takes_the_large_singular_vectors():
    x = torch.diag(torch.tensor([10.0, 1.0, 1e-3, 1e-3, 1e-3]))
    assert error(x, 1, "column", 0) < 1.1  # 1 is the best; the smallest vectors would leave 101


def test_columns_are_drawn_with_their_norm():
    x = torch.zeros(8, 8)
    x[:, 5] = torch.arange(8.0)
    for seed in range(10):  # uniform sampling of 8 of 8 columns would miss it in a third of the draws
        torch.testing.assert_close(low_rank(x, 1, "column", generator(seed)).matrix(), x)


def test_power_iteration_converges_along_the_steps():
    x, s = decaying(24, 0.5)
    previous, errors = None, []
    for step in range(12):
        sample = SAMPLERS["power"](DenseGradient(x), 2, generator(step), previous)
        previous = sample.left
        errors.append(float(torch.linalg.matrix_norm(sample.matrix() - x)))
    best = float(s[2:].square().sum().sqrt())
    assert errors[0] > 1.05 * best
    assert errors[-1] <= best * (1 + 1e-6)


def test_power_iteration_does_not_get_stuck_on_a_vanished_gradient():
    x, _ = decaying(10, 0.5)
    previous = None
    for gradient in (torch.zeros_like(x), torch.zeros_like(x), x, x, x, x):
        sample = SAMPLERS["power"](DenseGradient(gradient), 2, generator(3), previous)
        previous = sample.left
    assert torch.linalg.matrix_norm(sample.matrix() - x) < 0.3 * torch.linalg.matrix_norm(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sampler", NAMES)
@pytest.mark.parametrize("factor", [2.0**-99, 2.0**-33, 2.0**33, 2.0**99])
def test_scale_equivariance(dtype, sampler, factor):
    # powers of two, 1.6e-30 to 6e29: then even the rounding is the same
    x = torch.randn(2, 7, 9, dtype=dtype)
    plain, scaled = (low_rank(y, 2, sampler, generator()) for y in (x, x * factor))
    torch.testing.assert_close(scaled.matrix() / factor, plain.matrix(), rtol=0, atol=100 * eps(dtype))


@pytest.mark.parametrize("sampler", NAMES)
@pytest.mark.parametrize("kind", ["zero", "one-hot", "single-column", "single-row", "tiny"])
def test_degenerate_gradients(sampler, kind):
    x = torch.zeros(6, 6)
    if kind == "one-hot":
        x[2, 3] = 5
    elif kind == "single-column":
        x[:, 1] = torch.arange(6.0)
    elif kind == "single-row":
        x[4] = torch.arange(6.0)
    elif kind == "tiny":
        x = torch.full((6, 6), 1e-38)
    for k in (1, 3, 6):
        torch.testing.assert_close(
            low_rank(x, k, sampler, generator()).matrix(),
            x,
            rtol=0,
            atol=20 * eps(x.dtype) * float(x.abs().max()) + 1e-45,
        )


@pytest.mark.parametrize("sampler", NAMES)
def test_one_seed_one_sample_and_no_other_source(sampler):
    x, state = torch.randn(5, 5), torch.get_rng_state()
    first, second = (low_rank(x, 2, sampler, generator(7)) for _ in range(2))
    assert torch.equal(first.left, second.left)
    assert torch.equal(first.right, second.right)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("matrix", "rank", "sampler", "message"),
    [
        (torch.eye(3), 4, "lsi", r"rank from 1 to min\(m, n\) = 3, got 4"),
        (torch.eye(3), 0, "lsi", "got 0"),
        (torch.eye(3), 1, "best", "sampler of .*'lsi'.*, got 'best'"),
        (torch.ones(3), 1, "lsi", r"\(\.\.\., m, n\), got shape \(3,\)"),
        (torch.ones(3, 3, dtype=torch.int64), 1, "lsi", "floating point matrix.*int64"),
        (torch.full((2, 2), math.nan), 1, "svd", "finite matrix"),
        (torch.full((2, 2), math.inf), 1, "lsi", "finite matrix"),
    ],
)
def test_bad_input_is_refused(matrix, rank, sampler, message):
    with pytest.raises(ValueError, match=message):
        low_rank(matrix, rank, sampler)


def test_huge_but_finite_gradients_are_finite():
    assert DenseGradient(torch.full((4, 4), 3e38)).is_finite()  # their sum is not
    assert not DenseGradient(torch.tensor([[1.0, math.nan]])).is_finite()
    assert not DenseGradient(torch.tensor([[math.inf, -math.inf]])).is_finite()
    assert not DenseGradient(torch.tensor([[1.0, complex(0, math.nan)]])).is_finite()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 6])
@pytest.mark.parametrize("smallest", [-30, -20, -5])
def test_a_sum_of_thin_matrices_of_any_size_is_recompressed(dtype, rank, smallest):
    """Columns of a small rank, the smallest of which underflow when squared, as of a momentum of like gradients."""
    columns = 224
    left = torch.randn(300, rank, dtype=dtype, generator=generator(1))
    left = left @ torch.randn(rank, columns, dtype=dtype, generator=generator(2))
    left = left * torch.logspace(0, smallest, columns, dtype=wide(left).abs().dtype).to(left.abs().dtype)
    right = torch.randn(300, columns, dtype=dtype, generator=generator(3)) / math.sqrt(300)
    matrix = LowRank(left, right)
    for compressed in (projected(matrix, 128), recompressed(matrix, 128)):
        error = (compressed.matrix() - matrix.matrix()).norm() / matrix.matrix().norm()
        assert float(error) <= 10 * columns * eps(dtype)

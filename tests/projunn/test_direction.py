"""The spectral direction against its dense twin: the tangent part, equal angles, and a length that knows no scale."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, Problem, eps, problems, seeds, sizes
from torch import Tensor

from unitary_layers import UpdateRule, haar_unitary, unitarity_error
from unitary_layers.linalg import LowRank
from unitary_layers.projunn import DenseGradient
from unitary_layers.projunn.direction import automatic_rank, msign, spectral_rotation, turning

DOUBLE = (torch.float64, torch.complex128)


def skew(x: Tensor) -> Tensor:
    return (x - x.mH) / 2


def dense_msign(s: Tensor) -> Tensor:
    """By the eigenvalues of a Hermitian matrix, zeros left alone."""
    values, vectors = torch.linalg.eigh(1j * s)
    signs = torch.where(values.abs() > 1e-10 * values.abs().amax(-1, keepdim=True), values.sign(), 0)
    result = -1j * (vectors * signs.unsqueeze(-2)) @ vectors.mH
    return result if s.is_complex() else result.real


def dense_step(w: Tensor, m: Tensor, variant: str, length: float) -> Tensor:
    """The step of full rank: ``W exp(-theta msign(S))``, or W times the unitary matrix nearest to ``I - theta J``."""
    if w.size(-2) > w.size(-1):
        return dense_step(w.mH, m.mH, variant, length).mH
    j = dense_msign(skew(w.mH @ m))
    rank = torch.linalg.matrix_norm(j).square().round().clamp_min(1)
    theta = (length / rank.sqrt())[..., None, None]
    if variant == "T":
        return w @ torch.linalg.matrix_exp(-theta * j)
    u, _, vh = torch.linalg.svd(torch.eye(w.size(-1), dtype=w.dtype) - theta * j)
    return w @ u @ vh


@pytest.mark.parametrize("dtype", DOUBLE)
@pytest.mark.parametrize("shape", [(7, 7), (3, 6, 6), (4, 7), (3, 8, 5)])
def test_what_is_sampled_is_its_dense_twin(shape, dtype):
    """Of a square weight the generator of its turn, of a rectangle the tangent part of the gradient."""
    *batch, rows, columns = shape
    w, m = haar_unitary(rows, columns, batch=tuple(batch), dtype=dtype), torch.randn(shape, dtype=dtype)
    u, v = (torch.randn(*batch, side, 2, dtype=dtype) for side in (rows, columns))
    twin = skew(m @ w.mH) @ w if rows > columns else skew(w.mH @ m) if rows == columns else w @ skew(w.mH @ m)
    sampled = turning(DenseGradient(m), w)
    torch.testing.assert_close(sampled.dense(), twin)
    torch.testing.assert_close(sampled.matmul(v), twin @ v)
    torch.testing.assert_close(sampled.rmatmul(u), twin.mH @ u)


@pytest.mark.parametrize("dtype", DOUBLE)
@pytest.mark.parametrize(("m", "n"), [(5, 5), (3, 7), (7, 3)])
def test_what_a_full_step_uses_is_all_that_the_momentum_has_of_the_rotation(m, n, dtype):
    w, momentum = haar_unitary(m, n, dtype=dtype), torch.randn(m, n, dtype=dtype)
    rule = UpdateRule(rank=min(m, n))
    used = rule.turn(w, rule.sample(DenseGradient(momentum), [(0, 0)], w)).used.matrix()

    def generator(x: Tensor) -> Tensor:
        return skew(w.mH @ x) if m <= n else skew(x @ w.mH)

    torch.testing.assert_close(generator(used), generator(momentum))


@pytest.mark.parametrize("variant", ["D", "T"])
@pytest.mark.parametrize("dtype", DOUBLE)
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 5), (8, 8), (2, 3, 6, 6), (1, 5), (4, 6), (2, 7, 3), (6, 1)])
@pytest.mark.parametrize("sampler", ["lsi", "power", "svd"])
def test_at_full_rank_it_is_the_step_of_the_whole_matrix(shape, dtype, variant, sampler):
    n, rule = max(shape[-2:]), UpdateRule(variant, rank=min(shape[-2:]), sampler=sampler, lr=0.7)
    w, m = haar_unitary(*shape[-2:], batch=shape[:-2], dtype=dtype), torch.randn(shape, dtype=dtype)
    sample = rule.sample(DenseGradient(m), [(0, 0)], w)
    after = w + rule.change(w, sample).matrix()
    expected = dense_step(w, m, variant, 0.7)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e4 * n * eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-25, 1e-6, 3.0, 1e6, 1e25])
def test_the_scale_of_a_gradient_does_not_matter(scale, dtype):
    w, m = haar_unitary(12, dtype=dtype), torch.randn(12, 12, dtype=dtype)

    def after(m: Tensor) -> Tensor:
        rule = UpdateRule(rank=3)
        return w + rule.change(w, rule.sample(DenseGradient(m), [(0, 0)], w)).matrix()

    torch.testing.assert_close(after(scale * m), after(m), rtol=0, atol=1e3 * eps(dtype))


@pytest.mark.parametrize("variant", ["D", "T"])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_step_is_as_long_as_it_says_and_turns_all_planes_alike(rank, variant):
    w, m, length = haar_unitary(16, dtype=torch.float64), torch.randn(16, 16, dtype=torch.float64), 0.5
    rule = UpdateRule(variant, rank=rank, lr=length)
    after = w + rule.change(w, rule.sample(DenseGradient(m), [(0, 0)], w)).matrix()
    angles = torch.linalg.eigvals(w.mH @ after).angle().abs().sort(descending=True).values
    theta = length / math.sqrt(2 * rank) if variant == "T" else math.atan(length / math.sqrt(2 * rank))
    expected = torch.tensor([theta] * 2 * rank + [0.0] * (16 - 2 * rank), dtype=torch.float64)
    torch.testing.assert_close(angles, expected, rtol=0, atol=1e-7)


@given(problems(), st.sampled_from("DT"), st.sampled_from([0.0, 1e-8, 0.3, 3.0, 1e8, 1e300]))
def test_weights_stay_unitary_whatever_the_sample(problem: Problem, variant: str, length: float):
    weight, n = problem.weight, problem.weight.size(-1)
    after = weight + spectral_rotation(weight, LowRank(problem.a, problem.b), variant, length).change.matrix()
    before = float(unitarity_error(weight).amax())
    assert float(unitarity_error(after).amax()) <= before + 40 * (n + 1) * eps(weight.dtype)


@given(seeds, sizes, st.integers(0, 4), st.sampled_from(DOUBLE))
def test_only_planes_of_the_gradient_turn(seed, n, rank, dtype):
    g = torch.Generator().manual_seed(seed)
    w = haar_unitary(n, dtype=dtype, generator=g)
    rank = min(rank, n)
    a, b = (torch.randn(n, rank, dtype=dtype, generator=g) for _ in range(2))
    rule = UpdateRule(rank=n)
    change = rule.change(w, rule.sample(DenseGradient(a @ b.mH), [(0, 0)], w)).matrix()
    assert torch.linalg.matrix_rank(change, tol=1e-8) <= 2 * rank
    if rank == 0:
        assert torch.equal(change, torch.zeros_like(change))


def test_a_step_goes_down():
    for dtype in DOUBLE:
        for variant in ("D", "T"):
            w, a = haar_unitary(6, dtype=dtype), torch.randn(6, 6, dtype=dtype)
            for rank in (1, 3, 6):
                rule = UpdateRule(variant, rank=rank, lr=1e-4)
                change = rule.change(w, rule.sample(DenseGradient(a), [(0, 0)], w))
                assert (a.conj() * change.matrix()).sum().real < 0


@pytest.mark.parametrize("dtype", DOUBLE)
@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
def test_the_small_polar_factor_is_skew_and_a_projector_away_from_the_unit(n, dtype):
    s = skew(torch.randn(4, n, n, dtype=dtype))
    s[1] = 0
    j, projector, rank = msign(s, 1e-12)
    torch.testing.assert_close(j, dense_msign(s))
    torch.testing.assert_close(projector, j.mH @ j)
    torch.testing.assert_close(rank, torch.linalg.matrix_norm(j).square().round())
    assert rank[1] == 0


def test_a_pair_of_planes_at_the_edge_of_noise_counts_as_one():
    u = haar_unitary(6, dtype=torch.float64)
    for edge in (0.9e-6, 0.99999999999e-6, 1e-6, 1.00000000001e-6, 1.1e-6):
        blocks = torch.block_diag(*(torch.tensor([[0, x], [-x, 0]], dtype=torch.float64) for x in (1.0, 0.5, edge)))
        j, _, rank = msign(u @ blocks @ u.mH, 1e-6)
        assert rank in (4, 6)
        torch.testing.assert_close(j @ j @ j, -j, rtol=0, atol=1e-8)


def test_what_is_not_finite_is_refused():
    w = haar_unitary(4)
    with pytest.raises(ValueError, match="expected an update whose products with the weight are finite"):
        spectral_rotation(w, LowRank(torch.full((4, 1), math.nan), torch.ones(4, 1)), "T", 0.1)


def test_the_automatic_rank_is_a_sixteenth_between_8_and_32():
    assert [automatic_rank(n) for n in (1, 4, 8, 100, 128, 129, 512, 1024, 4096)] == [1, 4, 8, 8, 8, 9, 32, 32, 32]
    assert [UpdateRule(rank=k).rank_of(16) for k in (1, 16, 100)] == [1, 16, 16]
    assert [UpdateRule(direction="gradient").rank_of(n) for n in (1, 16, 4096)] == [1, 1, 1]

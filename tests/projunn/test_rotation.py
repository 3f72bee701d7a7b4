"""projUNN-D and projUNN-T against the dense formulas in float64, corner cases included; and their drift."""

import math

import pytest
import torch
from hypothesis import given
from strategies import DTYPES, Problem, eps, problems, wide
from torch import Tensor
from torch.func import vmap

from unitary_layers.linalg import LowRank, haar_unitary, unitarity_error
from unitary_layers.linalg.thin import add_low_rank_
from unitary_layers.projunn import projunn_d, projunn_t
from unitary_layers.projunn.rotation import rotation
from unitary_layers.testing import assert_unitary


def nearest_to_sum(problem: Problem) -> tuple[Tensor, Tensor]:
    """The slow twin of D: the polar factor of ``W + a b^H`` by a dense SVD; and the smallest singular value."""
    weight, update = problem.dense()
    u, s, vh = torch.linalg.svd(weight + update, full_matrices=False)
    return u @ vh, s[..., -1]


def geodesic(problem: Problem) -> Tensor:
    """The slow twin of T: ``W exp(skew(W^H a b^H))`` by a dense matrix exponential, of a tall W from the left."""
    weight, update = problem.dense()
    if weight.size(-2) > weight.size(-1):
        tangent = update @ weight.mH
        return torch.linalg.matrix_exp((tangent - tangent.mH) / 2) @ weight
    tangent = weight.mH @ update
    return weight @ torch.linalg.matrix_exp((tangent - tangent.mH) / 2)


def relative(x: Tensor, reference: Tensor) -> float:
    return float((torch.linalg.matrix_norm(wide(x) - reference) / torch.linalg.matrix_norm(reference)).max())


# 1e-5 in float32 and 1e-12 in float64 hold up to steps of norm 5. Beyond, the reference itself knows the answer only
# so well: T turns by angles up to |a b^H|, each known to eps of itself; D in float64 is an SVD of numbers of size |a
# b^H|.
BOUND = {torch.float32: 1e-5, torch.complex64: 1e-5, torch.float64: 1e-12, torch.complex128: 1e-12}


@given(problems())
def test_d_is_the_nearest_unitary_matrix(problem):
    reference, smallest = nearest_to_sum(problem)
    result = projunn_d(problem.weight, problem.a, problem.b)
    assert result.dtype == problem.weight.dtype
    assert_unitary(result)
    # an error eps in W or a b^H moves the nearest unitary matrix by eps / smallest, and by anything where that is zero
    rounding = 16 * eps(result.dtype) / float(smallest.min().clamp(min=1e-300))
    dense_svd = 64 * eps(torch.float64) * problem.scale * (1 + 1 / float(smallest.min().clamp(min=1e-300)))
    assert relative(result, reference) <= max(BOUND[result.dtype], rounding) + dense_svd


@given(problems())
def test_t_is_the_geodesic_step(problem):
    result = projunn_t(problem.weight, problem.a, problem.b)
    assert result.dtype == problem.weight.dtype
    assert_unitary(result)
    assert relative(result, geodesic(problem)) <= BOUND[result.dtype] * max(1.0, problem.scale / 5)


def test_a_singular_sum_of_rectangles_stays_on_the_manifold():
    """What the update takes away may be all that a row has, with nothing in its place, or little."""
    for m, n in ((3, 5), (5, 3), (4, 5)):
        w = haar_unitary(m, n, dtype=torch.float64)
        for left in (0.0, 1e-18, 1e-9):
            a, b = w[:, :2].clone(), torch.eye(n, 2, dtype=torch.float64)  # W + a b^H is without two columns
            assert_unitary(projunn_d(w, (left - 1) * a, b))
            assert_unitary(projunn_d(w, (left - 1) * torch.eye(m, 2, dtype=torch.float64), w[:2].mH.clone()))


@given(problems(max_scale=1e-2))
def test_d_and_t_agree_to_first_order(problem):
    weight, a, b = map(wide, (problem.weight, problem.a, problem.b))
    d = projunn_d(weight, a, b)
    # T moves a rectangle by half of what the update has outside its rows or columns, D by all of it.
    if weight.size(-2) < weight.size(-1):
        b = 2 * b - weight.mH @ (weight @ b)
    elif weight.size(-2) > weight.size(-1):
        a = 2 * a - weight @ (weight.mH @ a)
    t = projunn_t(weight, a, b)
    assert torch.linalg.matrix_norm(d - t).max() <= 4 * problem.scale**2 + 100 * eps(torch.float64)


@given(problems(max_scale=0.5))
@pytest.mark.parametrize("function", [projunn_d, projunn_t])
def test_a_batch_by_vmap_is_the_batch(function, problem):
    three = [torch.stack([x, x.flip(-1), x * 0]) for x in (problem.a, problem.b)]
    weights = problem.weight.expand(3, *problem.weight.shape)
    rounding = 16 * weights.size(-1) * eps(weights.dtype)
    torch.testing.assert_close(vmap(function)(weights, *three), function(weights, *three), rtol=0, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("function", [projunn_d, projunn_t])
@pytest.mark.parametrize("k", [1, 2])
def test_steps_are_differentiable(function, dtype, k):
    w = haar_unitary(5, dtype=dtype)
    a, b = (torch.randn(5, k, dtype=dtype, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: function(w, a, b), (a, b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [projunn_d, projunn_t])
def test_a_zero_update_changes_nothing(dtype, function):
    w = haar_unitary(6, batch=(2,), dtype=dtype)
    zero, some = torch.zeros(2, 6, 2, dtype=dtype), torch.randn(2, 6, 2, dtype=dtype)
    for a, b in ((zero, some), (some, zero), (zero, zero)):
        torch.testing.assert_close(function(w, a, b), w, rtol=0, atol=6 * eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_singular_sum_gives_a_nearest_unitary_matrix(dtype, n):
    w = haar_unitary(n, dtype=dtype)
    b = torch.zeros(n, 1, dtype=dtype)
    b[0] = 1
    a = -w @ b  # W + a b^H = W (I - e e^H) is singular
    result = projunn_d(w, a, b)
    assert_unitary(result)
    # every nearest unitary matrix is at distance |singular values - 1| = 1
    distance = torch.linalg.matrix_norm(result - (w + a @ b.mH))
    assert abs(float(distance) - 1) <= 10 * n * eps(dtype)


@pytest.mark.parametrize("function", [projunn_d, projunn_t])
def test_a_small_step_is_not_lost(function):
    w = haar_unitary(8, dtype=torch.float64)
    a, b = torch.randn(2, 8, 1, dtype=torch.float64)
    step = 1e-9
    moved = (function(w, step * a, b) - w) / step
    tangent = w @ (w.mH @ a @ b.mH - b @ a.mH @ w) / 2
    torch.testing.assert_close(moved, tangent, rtol=0, atol=100 * eps(torch.float64) / step)


def test_arguments_are_left_alone():
    w, a, b = haar_unitary(5), torch.randn(5, 2), torch.randn(5, 2)
    before = [x.clone() for x in (w, a, b)]
    projunn_d(w, a, b)
    projunn_t(w, a, b)
    assert all(torch.equal(x, y) for x, y in zip((w, a, b), before, strict=True))


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_any_layout_of_the_factors(layout):
    w = haar_unitary(6, dtype=torch.float64)
    a, b = torch.randn(2, 6, 2, dtype=torch.float64)
    other = {
        "transposed": lambda x: x.mT.contiguous().mT,
        "strided": lambda x: x.repeat_interleave(2, 1)[:, ::2],
        "expanded": lambda x: x[:, :1].expand(6, 2),
    }[layout]
    for f in (projunn_d, projunn_t):
        torch.testing.assert_close(
            f(w.mT.contiguous().mT, other(a), other(b)), f(w, *(other(x).clone() for x in (a, b)))
        )


@pytest.mark.parametrize("function", [projunn_d, projunn_t])
@pytest.mark.parametrize(
    ("weight", "a", "b", "message"),
    [
        (torch.eye(3, 4), torch.ones(3, 1), torch.ones(3, 1), r"expected b of shape \(4, k\).*\(3, 1\)"),
        (torch.eye(4, 3), torch.ones(3, 1), torch.ones(3, 1), r"expected a of shape \(4, k\), got \(3, 1\)"),
        (torch.ones(3), torch.ones(3, 1), torch.ones(3, 1), r"weight of shape \(\.\.\., m, n\), got shape \(3,\)"),
        (torch.eye(3), torch.ones(4, 1), torch.ones(4, 1), r"expected a of shape \(3, k\), got \(4, 1\)"),
        (torch.eye(3), torch.ones(3, 1), torch.ones(3, 2), r"expected b of shape \(3, k\).*\(3, 2\)"),
        (torch.eye(3), torch.ones(3), torch.ones(3), r"expected a of shape"),
        (torch.eye(3).expand(2, 3, 3), torch.ones(3, 1), torch.ones(3, 1), r"expected a of shape \(2, 3, k\)"),
        (torch.eye(3), torch.ones(3, 1).double(), torch.ones(3, 1), r"expected a of torch.float32.*torch.float64"),
        (torch.eye(3), torch.ones(3, 1), torch.ones(3, 1, device="meta"), r"expected b of.*cpu.*meta"),
    ],
)
def test_what_does_not_fit_is_refused(function, weight, a, b, message):
    with pytest.raises(ValueError, match=message):
        function(weight, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["D", "T"])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("directions", ["random", "persistent"])
def test_drift_after_10_000_steps(variant, k, directions):
    # measured 7.5e-6 to 1.9e-5 (persistent) and 5.8e-5 (random), without any retraction
    n, g = 256, torch.Generator().manual_seed(0)
    w = haar_unitary(n, generator=g)
    a, b = torch.randn(2, n, k, generator=g)
    for _ in range(10_000):
        if directions == "random":
            a, b = torch.randn(2, n, k, generator=g)
        scale = 0.3 / math.sqrt(float(((a.mT @ a) * (b.mT @ b)).sum()))  # |a b^T|_F = 0.3
        add_low_rank_(w, rotation(w, LowRank(a * scale, b), variant))
    assert unitarity_error(w) <= 1e-4

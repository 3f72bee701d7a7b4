"""The slope test: what it measures, and what it makes of it."""

import math

import pytest
import torch
from torch import Tensor

from unitary_layers import UpdateRule, haar_unitary
from unitary_layers.linalg import LowRank
from unitary_layers.projunn import DenseGradient
from unitary_layers.projunn.direction import spectral_rotation
from unitary_layers.projunn.slope import LONGEST, RATE, SHORTEST, STATE, TOLERATED, after_slope, factor_of


def after(slopes: list[float]) -> Tensor:
    state = torch.zeros(STATE, dtype=torch.float64)
    for slope in slopes:
        state = after_slope(state, torch.tensor(slope, dtype=torch.float64))
    return state


@pytest.mark.parametrize("variant", ["D", "T"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("m", "n"), [(7, 7), (5, 7), (9, 6)])
def test_the_course_is_the_derivative_of_the_path_at_its_end(m, n, variant, dtype):
    w, a = haar_unitary(m, n, batch=(2,), dtype=dtype), torch.randn(2, m, n, dtype=dtype)
    sample = LowRank(torch.randn(2, m, 2, dtype=dtype), torch.randn(2, n, 2, dtype=dtype))

    def loss(length: float) -> Tensor:
        return (a.conj() * (w + spectral_rotation(w, sample, variant, length).change.matrix())).sum((-2, -1)).real

    h, length = 1e-5, 0.4
    course = spectral_rotation(w, sample, variant, length).course
    slope = DenseGradient(a).along(course)
    rank = 4  # directions that turn; length / sqrt(rank) is their angle, or its tangent
    speed = 1 / math.sqrt(rank) / (1 + length**2 / rank if variant == "D" else 1)
    torch.testing.assert_close((loss(length + h) - loss(length - h)) / (2 * h), speed * slope, rtol=1e-6, atol=1e-8)
    norms = torch.linalg.matrix_norm(course.matrix())
    if m == n:
        torch.testing.assert_close(norms, torch.full_like(norms, math.sqrt(rank)))
    assert (norms <= math.sqrt(rank) + 1e-12).all()


def test_steps_that_overshoot_become_shorter_and_recover():
    assert factor_of(after([1.0] * 3)) == pytest.approx(math.exp(-3 * RATE * (1 - TOLERATED)))
    assert factor_of(after([1.0] * 30 + [-1.0] * 200)) == LONGEST == 1.0
    assert factor_of(after([1.0, -1.0] * 200)) == pytest.approx(1.0, abs=0.05)
    assert factor_of(after([0.0] * 5)) == 1
    assert factor_of(after([1.0] * 10_000)) == pytest.approx(SHORTEST)
    assert factor_of(after([-1.0] * 10_000)) == pytest.approx(LONGEST)


@pytest.mark.parametrize(("mean", "is_shorter"), [(0.3, False), (0.8, True)])
def test_some_overshooting_is_tolerated(mean, is_shorter):
    # slopes of 1 and -1 with this mean have a trend t of about the same size, and what is tolerated of t^2 is 0.2
    g = torch.Generator().manual_seed(0)
    slopes = torch.where(torch.rand(1000, generator=g) < (1 + mean) / 2, 1.0, -1.0)
    assert (factor_of(after(slopes.tolist())) < 0.5) == is_shorter


def test_it_knows_no_scale():
    slopes = torch.randn(40, dtype=torch.float64).tolist()
    for scale in (1e-150, 1e-25, 1e25, 1e150):
        assert factor_of(after([scale * s for s in slopes])) == pytest.approx(float(factor_of(after(slopes))))


def test_a_quadratic_bowl_is_reached_at_a_constant_length():
    # without the test, steps of length 0.3 go round the minimum at that distance
    def distance(with_test: bool) -> float:
        torch.manual_seed(0)
        rule = UpdateRule(rank=4, lr=0.3, sampler="svd")
        w, target = haar_unitary(8, dtype=torch.float64), haar_unitary(8, dtype=torch.float64)
        if torch.linalg.det(w) * torch.linalg.det(target) < 0:
            target[0] = -target[0]
        state, course = torch.zeros(STATE, dtype=torch.float64), None
        for _ in range(400):
            g = DenseGradient(w - target)
            if course is not None and with_test:
                state = after_slope(state, g.along(course))
            change, course, _ = rule.turn(w, rule.sample(g, [(0, 0)], w), factor_of(state))
            w = w + change.matrix()
        return float(torch.linalg.matrix_norm(w - target))

    assert distance(True) < 0.02 < 0.1 < distance(False)

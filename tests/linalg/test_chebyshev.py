"""The Chebyshev series of an exponential: its coefficients, its order, and what it leaves out."""

import math

import pytest
import torch

from unitary_layers.linalg.chebyshev import exponential, series, series_order

TIMES = (0.1, 1.0, 5.0, 20.0)
TOLERANCES = (1e-3, 1e-6, 1e-12)
ORDERS = {0.1: (2, 3, 6), 1.0: (4, 7, 12), 5.0: (10, 15, 21), 20.0: (29, 35, 45)}  # as the documentation has them


def bessel(t: float, order: int) -> list[float]:
    """J_0(t) to J_order(t) by the recurrence downwards in k, and the sum rule J_0 + 2 J_2 + 2 J_4 + ... = 1."""
    start = 2 * (order + int(abs(t))) + 40
    values = [0.0] * start + [1e-300, 0.0]
    for k in range(start, 0, -1):
        values[k - 1] = 2 * k / t * values[k] - values[k + 1]
    total = values[0] + 2 * sum(values[2::2])
    return [value / total for value in values[: order + 1]]


@pytest.mark.parametrize("t", [*TIMES, -3.0])
def test_the_coefficients_are_bessel_functions(t):
    order = series_order(t, 1e-15)
    found = series(torch.tensor([t], dtype=torch.float64), order)[:, 0]
    signs = [(2 if k else 1) * (-1) ** (k // 2) for k in range(order + 1)]
    expected = torch.tensor([s * j for s, j in zip(signs, bessel(t, order), strict=True)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=20 * torch.finfo(torch.float64).eps)


@pytest.mark.parametrize("t", TIMES)
def test_the_order_is_that_of_the_table(t):
    assert tuple(series_order(t, tol) for tol in TOLERANCES) == ORDERS[t]
    assert series_order(-t, 1e-6) == series_order(t, 1e-6)


def test_a_long_time_has_an_order_and_comes_to_an_end():
    for t in (1500.0, 1e4):
        assert t < series_order(t, 1e-7) < 1.1 * t
    assert series_order(5e-324, 1e-7) == 0


@pytest.mark.parametrize("t", [0.0, 1e-300, 1e-7, 0.7, 33.3, 300.0, 1000.0])
@pytest.mark.parametrize("tol", [1e-3, 1e-7, 1e-10])
def test_the_order_is_where_the_coefficients_end(t, tol):
    terms = series(torch.tensor(t, dtype=torch.float64), 100 + int(1.2 * t)).abs()
    rest = terms.flip(0).cumsum(0).flip(0)
    order = series_order(t, tol)
    assert order == max(int((rest > tol).sum()) - 1, 0)
    with torch.device("meta"):  # where tensors have no values, and no earlier answer is kept
        assert series_order.__wrapped__(t, tol) == order


@pytest.mark.parametrize("t", [0.0, math.nan, math.inf])
def test_a_time_without_a_series_has_none(t):
    assert series_order(t, 1e-6) == 0


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-10, 1e-14])
def test_the_tolerance_is_met_on_the_whole_spectrum_and_no_order_below_meets_it(t, tol):
    spectrum = torch.linspace(-1, 1, 201, dtype=torch.float64).unsqueeze(-1)
    one = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(201, 2)

    def product(x, before):
        return spectrum * x if before is None else 2 * spectrum * x - before

    def error(order):
        found = torch.view_as_complex(exponential(product, one, torch.tensor(t, dtype=torch.float64), order))
        return float((found - torch.exp(1j * t * spectrum[:, 0])).abs().max())

    order = series_order(t, tol)
    assert error(order) <= tol + 50 * (order + 1) * torch.finfo(torch.float64).eps
    assert error(order - 2) > tol  # the terms below are at least as large as all that are left out

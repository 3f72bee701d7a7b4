"""Thin products in panels against the plain ones, for rows that fill panels, leave some over, or are too few."""

import pytest
import torch
from strategies import DTYPES, eps

from unitary_layers.linalg import LowRank
from unitary_layers.linalg.thin import NARROW, PANEL, add_low_rank_, thin_times, times_thin

ROWS = (5, 2 * PANEL - 1, 2 * PANEL, 2 * PANEL + 3)


def k_major(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape[:-2], shape[-1], shape[-2], dtype=dtype).mT


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("shape", [*((m, 7) for m in ROWS), (3, 5, 7), (2, 2, 5, 7), (0, 7), (5, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_thin_products(dtype, shape, k):
    *batch, m, n = shape
    matrix, v, u = torch.randn(shape, dtype=dtype), *(k_major(*batch, rows, k, dtype=dtype) for rows in (n, m))
    tolerance = 4 * (m + n) * eps(dtype)
    close = {"rtol": tolerance, "atol": tolerance * (m + n) ** 0.5}
    torch.testing.assert_close(times_thin(matrix, v), matrix @ v, **close)
    torch.testing.assert_close(thin_times(u, matrix), u.mH @ matrix, **close)
    assert thin_times(u, matrix).is_contiguous()


@pytest.mark.parametrize("k", [1, 2, 3, NARROW + 1])
@pytest.mark.parametrize("shape", [*((m, 7) for m in ROWS), (4, 5, 5), (2, 3, 5, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_addition_in_place(dtype, shape, k):
    *batch, m, n = shape
    w = torch.randn(shape, dtype=dtype)
    change = LowRank(k_major(*batch, m, k, dtype=dtype), torch.randn(*batch, n, k, dtype=dtype))
    expected, pointer = w + change.matrix(), w.data_ptr()
    add_low_rank_(w, change)
    torch.testing.assert_close(w, expected, rtol=8 * k * eps(dtype), atol=32 * k * eps(dtype))
    assert w.data_ptr() == pointer

"""Low-rank factors and the basis that never fails."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, batches, dtypes, eps, seeds, sizes

from unitary_layers.linalg import LowRank, orthonormal_basis
from unitary_layers.testing import assert_unitary


@given(sizes, st.integers(1, 8), batches, dtypes, seeds, st.sampled_from([1e-30, 1e-10, 1.0, 1e30]))
def test_basis_spans_the_columns(n, m, batch, dtype, seed, scale):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, m, dtype=dtype, generator=g) * scale
    q = orthonormal_basis(x)
    assert q.shape == (*batch, n, min(n, m))
    assert_unitary(q)
    # as a part of the whole, in a norm that neither underflows nor overflows
    y = x / scale
    assert torch.linalg.matrix_norm(q @ (q.mH @ y) - y).max() <= 20 * n * eps(dtype) * torch.linalg.matrix_norm(y).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [6, 12, 20, 40])
def test_basis_of_degenerate_columns_is_orthonormal(dtype, n):
    one = torch.randn(10, n, 1, dtype=dtype)
    for m in range(1, n + 1):
        for x in (torch.zeros(n, m, dtype=dtype), one.expand(10, n, m), torch.cat([one, 0 * one, one], dim=-1)):
            assert_unitary(orthonormal_basis(x))


def test_columns_of_very_different_scale_all_count():
    x = torch.diag(torch.tensor([1e-30, 1.0, 1e30]))[:, :3]
    q = orthonormal_basis(x)
    assert_unitary(q)
    torch.testing.assert_close(q.abs(), torch.eye(3))


def test_low_rank():
    update = LowRank(torch.randn(2, 5, 3, dtype=torch.complex64), torch.randn(2, 4, 3, dtype=torch.complex64))
    assert update.rank == 3
    torch.testing.assert_close(update.matrix(), update.left @ update.right.conj().transpose(-1, -2))
    torch.testing.assert_close(update.scale(-2.0).matrix(), -2 * update.matrix())
    left, right = update
    assert left is update.left
    assert right is update.right

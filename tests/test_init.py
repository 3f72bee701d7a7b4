"""The fillers: what measure they sample, in every dtype, odd sizes and batches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, dtypes, seeds, sizes

from unitary_layers.init import INITS, cayley_, haar_, henaff_, identity_, timescales_
from unitary_layers.linalg import haar_unitary
from unitary_layers.testing import assert_unitary


@given(st.sampled_from(tuple(INITS)), sizes, batches, dtypes, seeds)
def test_fillers_fill_in_place_with_unitary_matrices(name, n, batch, dtype, seed):
    x = torch.full((*batch, n, n), math.nan, dtype=dtype, requires_grad=True)
    state = torch.get_rng_state()
    result = INITS[name](x, generator=torch.Generator().manual_seed(seed))
    assert result is x
    assert x.grad_fn is None
    assert torch.equal(torch.get_rng_state(), state)
    assert_unitary(x.detach())
    again = INITS[name](torch.empty_like(x), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(again, x)


def test_without_a_generator_torchs_own_is_used():
    for fill in (haar_, henaff_, cayley_):
        torch.manual_seed(3)
        first = fill(torch.empty(4, 4))
        assert not torch.equal(fill(torch.empty(4, 4)), first)
        torch.manual_seed(3)
        assert torch.equal(fill(torch.empty(4, 4)), first)


def test_haar_is_haar_unitary():
    x = haar_(torch.empty(2, 5, 5), generator=torch.Generator().manual_seed(1))
    assert torch.equal(x, haar_unitary(5, batch=(2,), generator=torch.Generator().manual_seed(1)))


def test_identity():
    for dtype in (torch.float32, torch.complex128):
        assert torch.equal(identity_(torch.empty(2, 3, 3, dtype=dtype)), torch.eye(3, dtype=dtype).expand(2, 3, 3))


@pytest.mark.parametrize(("fill", "low", "high"), [(henaff_, -math.pi, math.pi), (cayley_, 0, math.pi / 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [2001, 2000])
def test_angles_are_uniform(fill, low, high, dtype, n):
    x = fill(torch.empty(n, n, dtype=dtype), generator=torch.Generator().manual_seed(0))
    if dtype.is_complex:
        assert torch.equal(x, torch.diag(x.diagonal()))
        angles = x.diagonal().angle()
    else:
        first = torch.arange(0, n - 1, 2)
        blocks = x[first, first], x[first, first + 1], x[first + 1, first], x[first + 1, first + 1]
        assert torch.equal(blocks[0], blocks[3])
        assert torch.equal(blocks[1], -blocks[2])
        angles = torch.atan2(blocks[2], blocks[0])
        assert n % 2 == 0 or x[-1, -1] == 1
        assert int((x != 0).sum()) == 4 * len(first) + n % 2
    # the largest gap between sample and distribution (Kolmogorov): beyond 2 / sqrt(samples) once in 1,500 seeds
    u = ((angles - low) / (high - low)).sort().values
    gap = (u - torch.linspace(0, 1, len(u), dtype=u.dtype)).abs().max()
    assert gap < 2 / math.sqrt(len(u))


def test_timescales_are_log_uniform():
    x = timescales_(torch.empty(2001, 2001, dtype=torch.complex128), generator=torch.Generator().manual_seed(0))
    angles = x.diagonal().angle()
    assert 1e-3 <= angles.min() < 1.1e-3
    u = (angles.log().sort().values - math.log(1e-3)) / (math.log(math.pi) - math.log(1e-3))
    assert (u - torch.linspace(0, 1, len(u), dtype=u.dtype)).abs().max() < 2 / math.sqrt(len(u))
    slow = timescales_(torch.empty(8, 8, dtype=torch.float64), slowest=math.pi)
    torch.testing.assert_close(slow, -torch.eye(8, dtype=torch.float64))
    for slowest in (0.0, -1.0, 4.0, math.nan):
        with pytest.raises(ValueError, match=r"slowest to be an angle in \(0, pi\], got"):
            timescales_(torch.empty(2, 2), slowest=slowest)


@pytest.mark.parametrize("fill", INITS.values())
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_rectangle_gets_orthonormal_rows_or_columns(fill, dtype):
    for shape in ((3, 4), (5, 2), (2, 7, 3), (1, 4)):
        assert_unitary(fill(torch.full(shape, math.nan, dtype=dtype)))


@pytest.mark.parametrize("fill", INITS.values())
def test_what_is_no_matrix_is_refused(fill):
    with pytest.raises(ValueError, match=r"tensor of shape \(\.\.\., m, n\), got shape \(3,\)"):
        fill(torch.empty(3))

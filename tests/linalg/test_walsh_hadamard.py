"""Hadamard matrices and the fast transform against their definition: parities of the bits that two indices share."""

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor

from unitary_layers.linalg.hadamard import hadamard_matrix, walsh_hadamard


def slow_hadamard(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Entry i, j is -1 to the number of bits that are one in both i and j."""
    return torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)], dtype=dtype)


@pytest.mark.parametrize("n", [1, 2, 4, 32])
def test_the_matrix_is_sylvesters(n):
    h = hadamard_matrix(n, dtype=torch.float64)
    assert torch.equal(h, slow_hadamard(n))
    assert torch.equal(h @ h, n * torch.eye(n, dtype=h.dtype))


# one matrix, two products with unlike factors, and blocks of both
@pytest.mark.parametrize(("n", "block"), [(1, None), (8, None), (512, None), (12, 4), (12, 1), (512, 256), (8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_the_transform_is_the_product(n, block, dtype):
    x, m = torch.randn(3, 2, n, dtype=dtype), block or n
    w = torch.block_diag(*[slow_hadamard(m, dtype) / m**0.5] * (n // m))
    y = walsh_hadamard(x, block)
    assert_rounding(y, x @ w, n=m)
    assert_rounding(walsh_hadamard(y, block), x, n=m)


def test_orders_without_a_matrix_are_refused():
    for n, block, message in [
        (12, None, r"the last dimension to be a power of two.*got 12; block=m"),
        (0, None, r"the last dimension to be a power of two.*got 0"),
        (12, 8, r"the last dimension to be a multiple of block=8, got 12"),
        (12, 6, r"block to be a power of two.*got 6"),
    ]:
        with pytest.raises(ValueError, match=message):
            walsh_hadamard(torch.randn(2, n), block)

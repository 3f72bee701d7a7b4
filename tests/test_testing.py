"""The assertions that are shipped: they pass what is right and fail what is not, with the numbers in the message."""

import pytest
import torch
from torch import nn

from unitary_layers import UnitaryLinear, haar_unitary
from unitary_layers.testing import assert_isometry, assert_unitary, operator_matrix


def test_assert_unitary_of_tensors():
    for dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        w = haar_unitary(8, batch=(3,), dtype=dtype)
        assert_unitary(w)
        assert_unitary(w[..., :5])
        assert_unitary(w[..., :5, :])
        w[1] *= 1 + 20 * torch.finfo(dtype).eps * 8
        with pytest.raises(AssertionError, match=r"matrix \(3, 8, 8\) is not unitary: .* = .*e-.*, tolerance"):
            assert_unitary(w)
        assert_unitary(w, tolerance=1e-3)
    with pytest.raises(AssertionError, match="nan"):
        assert_unitary(torch.full((2, 2), float("nan")))


def test_assert_unitary_of_modules():
    net = nn.Sequential(UnitaryLinear(3, 3), UnitaryLinear(3, 3))
    assert_unitary(net)
    with torch.no_grad():
        net[1].weight[0, 0] += 0.1
    with pytest.raises(AssertionError, match=r"1.weight \(3, 3\) is not unitary"):
        assert_unitary(net)
    with pytest.raises(ValueError, match="got a Linear without any"):
        assert_unitary(nn.Linear(2, 2))


def test_assert_isometry():
    for dtype in (torch.float32, torch.complex128):
        layer = UnitaryLinear(4, 6, dtype=dtype)
        assert_isometry(layer, (4,), dtype=dtype)
        assert_isometry(layer, (2, 4), dtype=dtype)
        with pytest.raises(AssertionError, match="distances change by up to"):
            assert_isometry(UnitaryLinear(6, 4, dtype=dtype), (6,), dtype=dtype)
    with pytest.raises(AssertionError, match="not an isometry"):
        assert_isometry(lambda x: x * 1.01, (5,))


def test_operator_matrix():
    layer = UnitaryLinear(4, 6, dtype=torch.complex64)
    nn.init.ones_(layer.bias)
    torch.testing.assert_close(operator_matrix(layer, (4,), dtype=torch.complex64), layer.matrix.detach())
    conv = nn.Conv2d(2, 3, 3, padding=1)
    x = torch.randn(1, 2, 4, 5)
    matrix = operator_matrix(conv, (2, 4, 5))
    assert matrix.shape == (3 * 4 * 5, 2 * 4 * 5)
    expected = conv(x).flatten() - conv(torch.zeros_like(x)).flatten()
    torch.testing.assert_close(matrix @ x.flatten(), expected.detach(), rtol=0, atol=1e3 * torch.finfo(x.dtype).eps)

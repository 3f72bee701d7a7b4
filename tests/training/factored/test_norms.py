"""Norms of factored gradients, in the precision that is asked for."""

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor

from unitary_layers import UnitaryLinear, UpdateRule
from unitary_layers.training.collected import FactoredGrad

N = 6


def gradients(dtype: torch.dtype) -> list[Tensor]:
    """A factored gradient of full rank, a zero one, and that of a bias."""
    layer = UnitaryLinear(N, N, dtype=dtype, gradient="factored", update=UpdateRule(rank=N))
    layer(torch.randn(3, N, dtype=dtype)).abs().square().sum().backward()
    zero = UnitaryLinear(N, N, dtype=dtype, gradient="factored", update=UpdateRule(rank=N))
    zero(torch.randn(3, N, dtype=dtype)).abs().sum().backward()
    zero.weight.grad.zero_()
    assert isinstance(layer.weight.grad, FactoredGrad)
    return [layer.weight.grad, zero.weight.grad, layer.bias.grad]


def dense(gradient: Tensor) -> Tensor:
    return gradient.dense() if isinstance(gradient, FactoredGrad) else gradient


NORMS = {
    "list": lambda x: torch._foreach_norm(x, 2, dtype=torch.float64),
    "list of order 2": lambda x: torch._foreach_norm(x),
    "list of order 1": lambda x: torch._foreach_norm(x, 1, torch.float64),
    "one by one": lambda x: [torch.linalg.vector_norm(g, dtype=torch.float64) for g in x],
    "of a side": lambda x: [torch.linalg.vector_norm(g, 2, 0, True, dtype=torch.float64) for g in x],
    "by torch.norm": lambda x: [torch.norm(g, dtype=torch.float64) for g in x],
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_a_norm_is_that_of_the_matrix_in_the_precision_asked_for(norm, dtype):
    given = gradients(dtype)
    for found, expected in zip(norm(given), norm([dense(g) for g in given]), strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        eps = torch.finfo(dtype).eps  # of the gradient that was sampled
        assert (found - expected).abs().amax() <= 20 * N * eps * max(1.0, expected.abs().amax().item())


def test_a_wide_norm_of_large_gradients_is_finite_and_a_narrow_one_is_refused():
    first, *_ = gradients(torch.float32)
    first.mul_(1e30)
    found, expected = (torch.linalg.vector_norm(x, dtype=torch.float64) for x in (first, first.dense()))
    assert found.isfinite()
    assert_rounding((found / expected).float(), torch.tensor(1.0), n=N)
    with pytest.raises(RuntimeError, match="narrowing"):
        torch.linalg.vector_norm(first, dtype=torch.bfloat16)


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_the_norm_of_a_very_small_or_large_gradient_is_known(size, dtype):
    gradient, *_ = gradients(dtype)
    expected = gradient.norm() * size
    gradient.mul_(size)
    assert gradient.norm() == pytest.approx(float(expected), rel=20 * N * torch.finfo(dtype).eps)

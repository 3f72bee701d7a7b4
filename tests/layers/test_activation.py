"""ModReLU against its formula, GroupSort against a loop over groups."""

import math

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor
from torch.autograd import gradcheck

from unitary_layers import GroupSort, ModReLU

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
BIASES = (-1.5, -0.2, 0.0, 0.4)

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def mod_relu(dtype: torch.dtype) -> ModReLU:
    layer = ModReLU(len(BIASES), dtype=dtype)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(BIASES))
    return layer


def formula(z: complex, b: float) -> complex:
    modulus = abs(z)
    return 0.0 if modulus == 0 else z / modulus * max(modulus + b, 0.0)


@dtypes
@pytest.mark.parametrize("batch", [(), (6,), (2, 3)], ids=str)
def test_mod_relu_is_its_formula(batch, dtype):
    layer = mod_relu(dtype)
    x = torch.randn(*batch, len(BIASES), dtype=dtype)
    x.view(-1)[0] = 0
    biases = layer.bias.tolist()  # as rounded to the precision of the layer
    flat = [formula(z.item(), biases[i % len(biases)]) for i, z in enumerate(x.flatten())]
    assert_rounding(layer(x).detach(), torch.tensor(flat, dtype=dtype).reshape(x.shape), n=1)


@dtypes
def test_mod_relu_starts_as_the_identity_with_a_real_bias(dtype):
    layer = ModReLU(5, dtype=dtype)
    x = torch.randn(3, 5, dtype=dtype)
    assert_rounding(layer(x).detach(), x, n=1)
    assert layer.bias.dtype == dtype.to_real()
    torch.nn.init.normal_(layer.bias)
    layer.reset_parameters()
    assert layer.bias.abs().max() == 0


@dtypes
def test_mod_relu_keeps_sign_and_phase_and_contracts_for_negative_biases(dtype):
    layer = mod_relu(dtype)
    x, y = torch.randn(2, 50, len(BIASES), dtype=dtype)
    fx = layer(x).detach()
    alive = fx != 0
    assert_rounding(torch.sgn(fx)[alive], torch.sgn(x)[alive], n=1)
    assert 0 < alive[:, 0].sum() < 50  # the bias of -1.5 cuts some
    layer.bias.data.clamp_(max=0)
    distance, after = (x - y).abs(), (layer(x) - layer(y)).detach().abs()
    assert (after <= distance * (1 + 8 * torch.finfo(dtype).eps)).all()


@dtypes
def test_mod_relu_at_zero_has_a_finite_gradient(dtype):
    layer = mod_relu(dtype)
    x = torch.zeros(3, len(BIASES), dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.abs().max() == 0
    y.abs().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(layer.bias.grad).all()
    assert layer.bias.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_mod_relu_gradcheck(dtype):
    layer = mod_relu(dtype)
    x = torch.randn(4, len(BIASES), dtype=dtype)
    x = (torch.sgn(x) * (x.abs() + 0.3)).requires_grad_()  # away from the kink at zero
    assert gradcheck(lambda x, _: layer(x), (x, layer.bias))  # the bias is changed in place


def test_mod_relu_refuses_no_features_and_prints_them():
    assert repr(ModReLU(7)) == "ModReLU(7)"
    with pytest.raises(ValueError, match="num_features >= 1, got 0"):
        ModReLU(0)


def sorted_in_groups(x: Tensor, group_size: int, dim: int) -> Tensor:
    parts = [part.sort(dim=dim).values for part in x.split(group_size, dim=dim)]
    return torch.cat(parts, dim=dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group_size", [1, 2, 3, 6])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((2, 6), 1), ((2, 6, 3, 5), 1), ((4, 6), -1), ((6,), 0), ((2, 3, 6), -1), ((6, 2, 3), -3)],
    ids=str,
)
def test_group_sort_sorts_each_group_and_keeps_norms(shape, dim, group_size, dtype):
    layer = GroupSort(group_size, dim)
    x = torch.randn(shape, dtype=dtype)
    y = layer(x)
    assert torch.equal(y, sorted_in_groups(x, group_size, dim))
    assert y.shape == x.shape
    # a permutation along the channels: the same values
    assert torch.equal(y.sort(dim=dim).values, x.sort(dim=dim).values)
    n = shape[dim]
    norms = [torch.linalg.vector_norm(t, dim=dim) for t in (y, x)]
    assert_rounding(*norms, n=n)


def test_group_sort_is_one_lipschitz_and_its_gradient_keeps_norms():
    layer = GroupSort(3)
    x, y = torch.randn(2, 40, 9)
    distance, after = (torch.linalg.vector_norm(t, dim=1) for t in (x - y, layer(x) - layer(y)))
    assert (after <= distance * (1 + 9 * torch.finfo(x.dtype).eps)).all()
    x.requires_grad_()
    direction = torch.randn(40, 9)
    (gradient,) = torch.autograd.grad((layer(x) * direction).sum(), x)
    assert_rounding(torch.linalg.vector_norm(gradient, dim=1), torch.linalg.vector_norm(direction, dim=1), n=9)


def test_group_sort_gradcheck():
    x = torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True)
    for group_size in (2, 3):
        assert gradcheck(GroupSort(group_size), (x,))


def test_group_sort_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="group_size >= 1, got 0"):
        GroupSort(0)
    with pytest.raises(ValueError, match="groups of 4, got 6 channels"):
        GroupSort(4)(torch.zeros(2, 6))
    assert repr(GroupSort()) == "GroupSort(group_size=2)"
    assert repr(GroupSort(3, dim=-1)) == "GroupSort(group_size=3, dim=-1)"


def test_group_sort_of_two_is_min_and_max():
    x = torch.tensor([[3.0, -1.0, 0.5, math.pi]])
    assert torch.equal(GroupSort()(x), torch.tensor([[-1.0, 3.0, 0.5, math.pi]]))


def test_modrelu_refuses_other_numbers_of_features():
    for features in (1, 3, 5):
        with pytest.raises(RuntimeError, match="expanded size"):
            ModReLU(4)(torch.randn(2, features))

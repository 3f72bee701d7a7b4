"""``UnitaryLinear`` against ``F.linear`` with its matrix; square, wide and tall; and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_rounding
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from unitary_layers import ModReLU, UnitaryLinear, UnitaryRNN, UpdateRule
from unitary_layers.testing import assert_isometry, assert_unitary, operator_matrix

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
SHAPES = ((6, 6), (6, 4), (4, 6), (1, 1), (1, 5), (5, 1))

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def with_random_bias(layer: UnitaryLinear) -> UnitaryLinear:
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


@dtypes
@shapes
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("batch", [(), (0,), (7,), (2, 3, 1, 2)], ids=str)
def test_values_and_gradients_are_those_of_linear(batch, bias, shape, dtype):
    layer = with_random_bias(UnitaryLinear(*shape, bias=bias, dtype=dtype))
    x = torch.randn(*batch, shape[0], dtype=dtype, requires_grad=True)
    matrix = layer.matrix.detach().clone().requires_grad_()
    vector = layer.value("bias").detach().clone().requires_grad_() if bias else None
    y, twin = layer(x), F.linear(x, matrix, vector)
    n = max(shape) + twin.numel()
    assert_rounding(y, twin, n=n)
    direction = torch.randn_like(twin)
    actual = torch.autograd.grad((y * direction).sum().abs(), [x, *layer.parameters()])
    expected = torch.autograd.grad((twin * direction).sum().abs(), [x, matrix] + ([vector] if bias else []))
    as_matrix = [torch.view_as_complex(g) if dtype.is_complex and i else g for i, g in enumerate(actual)]
    for mine, plain in zip(as_matrix, expected, strict=True):
        assert_rounding(mine, plain, n=n)


@dtypes
@shapes
def test_the_matrix_has_orthonormal_rows_or_columns(shape, dtype):
    layer = UnitaryLinear(*shape, dtype=dtype)
    n = max(shape)
    assert layer.weight.shape == (shape[1], shape[0], *([2] if dtype.is_complex else []))
    assert layer.weight.is_contiguous()
    assert layer.matrix.shape == (shape[1], shape[0])
    assert layer.matrix.dtype == dtype
    assert layer.bias.abs().max() == 0
    assert_unitary(layer.matrix.detach())  # the shorter side
    assert_unitary(layer)
    assert_rounding(operator_matrix(layer, (shape[0],), dtype=dtype), layer.matrix.detach(), n=n)


@dtypes
def test_more_outputs_than_inputs_is_an_isometry_and_fewer_a_contraction(dtype):
    assert_isometry(with_random_bias(UnitaryLinear(4, 9, dtype=dtype)), (4,), dtype=dtype)
    assert_isometry(with_random_bias(UnitaryLinear(6, 6, dtype=dtype)), (6,), dtype=dtype)
    singular = torch.linalg.svdvals(UnitaryLinear(9, 4, dtype=dtype).matrix.detach())
    assert (singular - 1).abs().max() <= 10 * 9 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_rectangular_layer_stays_orthonormal_in_training(dtype, shape):
    layer = UnitaryLinear(*shape, dtype=dtype, update=UpdateRule("D", lr=0.1))
    x, target = torch.randn(8, shape[0], dtype=dtype), torch.randn(8, shape[1], dtype=dtype)
    before = layer.matrix.detach().clone()
    for _ in range(20):
        (layer(x) - target).abs().square().mean().backward()
        layer.projunn_step()
    assert_unitary(layer.matrix.detach())
    assert torch.linalg.matrix_norm(layer.matrix - before) > 0.01


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradcheck(dtype, shape):
    layer = with_random_bias(UnitaryLinear(*shape, dtype=dtype))
    x = torch.randn(2, shape[0], dtype=dtype, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    # as arguments: gradcheck would write them through .data, which a layer notices
    values = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    assert gradcheck(lambda x, *p: functional_call(layer, dict(zip(names, p, strict=True)), x), (x, *values))


def test_the_arguments_are_those_of_linear():
    layer = UnitaryLinear(4, 3, False, "cpu", torch.float64)
    assert layer.bias is None
    assert layer.weight.dtype == torch.float64
    assert [name for name, _ in UnitaryLinear(4, 3).named_parameters()] == ["weight", "bias"]
    assert not isinstance(layer, nn.Linear)  # initialisation loops overwrite the weights of those
    with pytest.raises(TypeError, match="positional"):
        UnitaryLinear(4, 3, True, None, None, UpdateRule())


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ((3, 4), {}, "in_features=3, out_features=4"),
        ((3, 4), {"bias": False}, "in_features=3, out_features=4, bias=False"),
        ((3, 3), {"dtype": torch.complex64}, "in_features=3, out_features=3, complex=True"),
        ((3, 3), {"init": "identity"}, "in_features=3, out_features=3, init='identity'"),
        ((3, 3), {"update": UpdateRule("D")}, f"in_features=3, out_features=3, update={UpdateRule('D')}"),
    ],
)
def test_extra_repr_tells_what_is_not_the_default(arguments, options, expected):
    layer = UnitaryLinear(*arguments, **options)
    assert layer.extra_repr() == expected
    assert repr(layer) == f"UnitaryLinear({expected})"


def test_reset_parameters_starts_anew():
    layer = with_random_bias(UnitaryLinear(5, 5, update=UpdateRule(sampler="power")))
    layer(torch.randn(2, 5)).sum().backward()
    layer.projunn_step()
    before = layer.weight.detach().clone()
    assert layer.weight_count == 1
    assert layer.weight_previous.abs().max() > 0
    layer.reset_parameters()
    assert layer.weight_count == 0
    assert layer.weight_previous.abs().max() == 0
    assert layer.bias.abs().max() == 0
    assert not torch.equal(layer.weight, before)
    assert_unitary(layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_inits(dtype):
    found = {init: UnitaryLinear(6, 6, init=init, dtype=dtype) for init in ("haar", "identity", "henaff", "cayley")}
    for layer in found.values():
        assert_unitary(layer)
    assert torch.equal(found["identity"].matrix, torch.eye(6, dtype=dtype))
    assert found["haar"].matrix.abs().min() > 0
    band = torch.ones(6, 6).tril(1).triu(-1) == 0  # beyond rotations of two neighbours
    assert found["henaff"].matrix[band].abs().max() == 0
    assert found["cayley"].matrix.diagonal().real.min() >= 0  # angles of at most pi / 2
    own = UnitaryLinear(6, 6, init=lambda w: w.copy_(torch.eye(6).flip(0)), dtype=dtype)
    assert torch.equal(own.matrix, torch.eye(6, dtype=dtype).flip(0))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 3)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match=f"(in|out)_features >= 1, got {min(sizes)}"):
        UnitaryLinear(*sizes)


def test_options_out_of_range_are_refused():
    for dtype in (torch.int32, torch.bool):
        with pytest.raises(ValueError, match=f"floating point dtype, got {dtype}"):
            UnitaryLinear(3, 3, dtype=dtype)
    with pytest.raises(ValueError, match=r"init to be a function or one of .*'haar'.* got 'orthogonal'"):
        UnitaryLinear(3, 3, init="orthogonal")
    with pytest.raises(ValueError, match=r"update to be an UpdateRule, such as .* got 0.1"):
        UnitaryLinear(3, 3, update=0.1)


def test_another_rate_keeps_what_the_rule_has_learnt():
    layer = UnitaryLinear(8, 8, update=UpdateRule(rank=4, sampler="power", momentum=0.9))
    layer(torch.randn(4, 8)).square().sum().backward()
    layer.projunn_step()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer.update = layer.update.with_lr(5e-4)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
    layer.update = UpdateRule(rank=2, sampler="power", momentum=0.9)
    assert layer.weight_previous.shape == (8, 2)
    assert torch.equal(layer.weight_momentum, before["weight_momentum"])


def test_empty_memory_is_not_taken_for_unitary():
    layer = UnitaryLinear(8, 8)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.data.fill_(torch.nan)
    with pytest.raises(RuntimeError, match=r"'weight' .* was written by something else"):
        layer(torch.randn(2, 8))


def test_a_weight_that_a_tied_layer_has_cast_is_refused():
    first, last = UnitaryLinear(8, 8), nn.Linear(8, 8)
    last.weight = first.weight
    net = nn.Sequential(first, last).half()
    with pytest.raises(RuntimeError, match=r"'weight' in float32 or better, got torch.float16: something has cast it"):
        net(torch.randn(2, 8).half())


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_what_is_complex_in_a_layer_and_not_its_own_is_cast():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(4, dtype=torch.complex64))

        def forward(self, x):
            return x * self.factor

    rnn = UnitaryRNN(4, 4, nonlinearity=Scale(), dtype=torch.complex64).to(torch.complex128)
    assert rnn.activations[0].factor.dtype == torch.complex128
    net = nn.Sequential(UnitaryLinear(4, 4, dtype=torch.complex64), ModReLU(4, dtype=torch.complex64))
    net.to(torch.complex128)(torch.randn(2, 4, dtype=torch.complex128)).abs().sum().backward()
    assert net[1].bias.grad.dtype == torch.float64

"""Quantised weights: what is rounded and how, whose gradient it gets, and the same numbers in integers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_rounding
from torch import nn

from unitary_layers import UnitaryLinear, UnitaryRNN, UnitaryRNNCell, UpdateRule, haar_unitary, revert
from unitary_layers.init import INITS
from unitary_layers.layers.base.quantise import SCALES, Quantiser
from unitary_layers.testing import assert_isometry, assert_unitary
from unitary_layers.training import unitary_weights

N = 12
every_scale = pytest.mark.parametrize("scale", SCALES)


def rounded(row: list[float], alpha: float, bits: int) -> list[int]:
    most = 2 ** (bits - 1) - 1
    return [max(-most, min(most, round(x / alpha))) for x in row]


def distance(row: list[float], codes: list[float], alpha: float) -> float:
    return math.sqrt(sum((x - alpha * c) ** 2 for x, c in zip(row, codes, strict=True)))


def least_distance(row: list[float], bits: int) -> float:
    """To the nearest quantised row, over many alphas."""
    largest = max(map(abs, row)) / (2 ** (bits - 1) - 1)
    alphas = [largest * k / 200 for k in range(10, 230)]
    return min(distance(row, rounded(row, alpha, bits), alpha) for alpha in alphas)


@every_scale
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("pairs", [False, True], ids=["real", "pairs"])
def test_a_slow_twin_finds_no_much_better_codes(bits, scale, pairs):
    matrix = haar_unitary(N, dtype=torch.complex128 if pairs else torch.float64)
    matrix = torch.view_as_real(matrix) if pairs else matrix
    codes, alpha = Quantiser(bits, scale).codes(matrix)
    assert alpha.shape == ((N, *[1] * (matrix.ndim - 1)) if scale == "row" else ())
    groups = N if scale == "row" else 1
    ours = least = 0.0
    for row, mine, a in zip(*(x.reshape(groups, -1).tolist() for x in (matrix, codes, alpha)), strict=True):
        if scale == "max":
            assert a[0] == pytest.approx(max(map(abs, row)) / (2 ** (bits - 1) - 1))
            assert mine == rounded(row, a[0], bits)
        if scale == "row":
            assert a[0] * math.hypot(*mine) == pytest.approx(math.hypot(*row))
        fitted = sum(x * c for x, c in zip(row, mine, strict=True)) / math.hypot(*mine) ** 2
        assert max(map(abs, mine)) < 2 ** (bits - 1)
        ours, least = ours + distance(row, mine, fitted), least + least_distance(row, bits)
    assert scale == "max" or ours <= 1.6 * least


@pytest.mark.parametrize(("bits", "best", "largest"), [(2, 0.44, 0.8), (3, 0.22, 0.35), (4, 0.12, 0.15)])
def test_a_scale_of_least_squares_is_worth_half_a_bit_and_more(bits, best, largest):
    matrix = haar_unitary(256, generator=torch.Generator().manual_seed(0))
    of = {scale: float((Quantiser(bits, scale)(matrix) - matrix).norm()) / 16 for scale in SCALES}
    assert of["mse"] < best
    assert of["row"] < 1.03 * best
    assert of["max"] > largest


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("start", ["identity", "henaff", "cayley", "timescales"])
def test_plane_rotations_stay_rotations(start, dtype):
    """So states of a linear recurrence neither grow nor fade; with a scale for all they do."""
    matrix = torch.empty(N, N, dtype=dtype)
    INITS[start](matrix)
    stored = torch.view_as_real(matrix) if dtype.is_complex else matrix
    for bits in (2, 3, 8):
        quantised = Quantiser(bits)(stored)
        assert_unitary(torch.view_as_complex(quantised) if dtype.is_complex else quantised)
        assert (quantised - stored).abs().max() > 1e-4 or start == "identity"
    rnn = UnitaryRNN(2, N, nonlinearity="identity", init=start, dtype=dtype, weight_bits=4)
    assert_isometry(lambda h: rnn(torch.zeros(100, len(h), 2, dtype=dtype), h[None])[1][0], (N,), dtype=dtype)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_plane_rotation_has_the_best_angle_of_all_integers(bits):
    angle = torch.linspace(0, math.pi, 1000, dtype=torch.float64)
    codes, _ = Quantiser(bits).codes(torch.stack([angle.cos(), angle.sin()], dim=1))
    levels = torch.arange(1 - 2 ** (bits - 1), 2 ** (bits - 1), dtype=torch.float64)
    known = torch.atan2(*torch.cartesian_prod(levels, levels).T)
    error = (torch.atan2(codes[:, 1], codes[:, 0]) - angle).square().mean().sqrt()
    least = (known - angle[:, None]).abs().amin(dim=1).square().mean().sqrt()
    assert error < least * (1 + 1e-9)


@every_scale
def test_zero_rows_stay_zero(scale):
    tall = torch.eye(5, 3)
    quantised = Quantiser(4, scale)(tall)
    assert quantised.isfinite().all()
    assert torch.equal(quantised[3:], torch.zeros(2, 3))
    assert Quantiser(4, scale)(torch.zeros(3, 3)).count_nonzero() == 0


@every_scale
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_matrix_in_half_precision_is_rounded_as_it_is_in_float32(dtype, scale):
    matrix = torch.randn(64, 28).to(dtype)
    quantised = Quantiser(8, scale)(matrix)
    assert quantised.dtype == dtype
    assert torch.equal(quantised, Quantiser(8, scale)(matrix.float()).to(dtype))


@every_scale
@pytest.mark.parametrize("shape", [(6, 6), (4, 7), (7, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_linear_is_that_of_its_integers(shape, dtype, scale):
    layer = UnitaryLinear(*shape, dtype=dtype, weight_bits=3, weight_scale=scale)
    codes, alpha = layer.integer()
    assert codes.dtype == torch.int8
    assert codes.shape == layer.weight.shape
    stored = (codes * alpha).requires_grad_()
    x, bias = torch.randn(5, shape[0], dtype=dtype), layer.value("bias").detach()
    weight = torch.view_as_complex(stored) if dtype.is_complex else stored
    y, twin = layer(x), F.linear(x, weight, bias)
    assert torch.equal(y, twin)
    y.abs().pow(3).sum().backward()
    twin.abs().pow(3).sum().backward()
    assert torch.equal(layer.weight.grad, stored.grad)  # straight through
    layer.projunn_step()
    assert_unitary(layer)


def test_the_factored_gradient_is_that_of_the_quantised_weight():
    rule = UpdateRule(rank=4, lr=0.1)
    options = {"weight_bits": 3, "update": rule, "dtype": torch.float64}
    dense, factored = UnitaryLinear(N, N, **options), UnitaryLinear(N, N, gradient="factored", **options)
    factored.load_state_dict(dense.state_dict())
    x = torch.randn(5, N, dtype=torch.float64)
    for layer in (dense, factored):
        layer(x).pow(3).sum().backward()
        layer.projunn_step()
    assert_rounding(factored.matrix.detach(), dense.matrix.detach(), n=100 * N)


def test_an_integer_forward_is_the_same_bit_for_bit_where_scales_are_powers_of_two():
    layer = UnitaryLinear(N, N, weight_bits=4, weight_scale="max")
    turn = torch.tensor([[0.875, -math.sqrt(1 - 0.875**2)], [math.sqrt(1 - 0.875**2), 0.875]])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the largest entry is 7 / 8
        layer.weight.copy_(torch.block_diag(turn, haar_unitary(N - 2, generator=generator)))
    codes, alpha = layer.integer()
    assert alpha == 1 / 8
    x = torch.randint(-127, 128, (20, N), dtype=torch.int8)
    integers = x.int() @ codes.int().mT
    assert torch.equal(integers * (alpha / 64), layer(x / 64))


def test_what_is_no_number_of_bits_or_no_scale_is_refused():
    for bits in (1, 0, -4, 9, 4.0, True, "4"):
        with pytest.raises(ValueError, match="expected weight_bits to be None or an integer from 2 to 8, got"):
            UnitaryLinear(4, 4, weight_bits=bits)
    for build in (lambda **o: UnitaryRNN(3, 4, **o), lambda **o: UnitaryRNNCell(3, 4, **o)):
        with pytest.raises(ValueError, match=r"expected weight_scale to be one of \('row', 'mse', 'max'\), got 'mean'"):
            build(weight_bits=4, weight_scale="mean")
        with pytest.raises(ValueError, match="expected a layer with weight_bits, got a UnitaryRNN"):
            build().integer()


def test_it_says_so_and_loads_what_it_was_before():
    layer = UnitaryLinear(4, 4, weight_bits=4)
    assert "weight_bits=4" in repr(layer)
    assert "weight_scale" not in repr(layer)
    assert "weight_bits=2, weight_scale='mse'" in repr(UnitaryRNN(3, 4, weight_bits=2, weight_scale="mse"))
    plain = UnitaryLinear(4, 4)
    assert "weight_bits" not in repr(plain)
    assert plain.state_dict().keys() == layer.state_dict().keys()
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (UnitaryRNN(3, N, 2, bidirectional=True, init="haar", weight_bits=3), (4, 5, 3)),
        (UnitaryRNNCell(3, N, init="haar", weight_bits=3, weight_scale="mse"), (5, 3)),
        (UnitaryLinear(3, 6, weight_bits=3, weight_scale="max"), (5, 3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_reverted_it_is_torchs_layer_with_these_integers(layer, shape):
    model, x = copy.deepcopy(nn.ModuleList([layer])), torch.randn(shape)
    twin = copy.deepcopy(layer)
    revert(model)
    assert type(model[0]) in (nn.Linear, nn.RNN, nn.RNNCell)
    h = torch.randn(5, N)
    before, after = (m(x, h) if type(m) in (nn.RNNCell, UnitaryRNNCell) else m(x) for m in (layer, model[0]))
    pairs = zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    sides = [(i, r) for i in (0, 1) for r in (False, True)] if isinstance(twin, UnitaryRNN) else [None]
    integers = [twin.integer() if side is None else twin.integer(side[0], reverse=side[1]) for side in sides]
    weights = [weight.name for weight in unitary_weights(twin)]
    for name, (codes, alpha) in zip(weights, integers, strict=True):
        assert torch.equal(getattr(model[0], name), codes * alpha)

"""Each block keeps the bound that it states, measured on its Jacobian, before and after training."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from unitary_layers import GroupSort, OrthogonalConv2d, OrthoResNet, UpdateRule, projunn_step
from unitary_layers.models.blocks import BLOCKS, ConvexBlock, ConvUnit, FreeBlock, IsometryBlock, UnitSpec

CHANNELS, SIDE = 4, 4
N = CHANNELS * SIDE * SIDE
RULE = UpdateRule(lr=0.3)


def spec(kernel_size=3, norm=None, act=GroupSort) -> UnitSpec:
    return UnitSpec(kernel_size, norm, act, RULE, dtype=torch.float64)


def jacobian(module: nn.Module, channels: int = CHANNELS, side: int = SIDE) -> torch.Tensor:
    """The Jacobian at a random point, where GroupSort is differentiable with probability one."""
    x = torch.randn(1, channels, side, side, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(module, x)
    return matrix.reshape(-1, x.numel())


def trained(module: nn.Module) -> nn.Module:
    for _ in range(3):
        module(torch.randn(2, CHANNELS, SIDE, SIDE, dtype=torch.float64)).pow(3).sum().backward()
        projunn_step(module)
    return module


@pytest.mark.parametrize("kernel_size", [3, None], ids=["local", "full"])
def test_an_isometry_keeps_gradients_and_signals(kernel_size):
    block = trained(IsometryBlock(spec(kernel_size), CHANNELS, (SIDE, SIDE)))
    j = jacobian(block)
    eye = torch.eye(N, dtype=torch.float64)
    assert float((j.mT @ j - eye).norm()) <= 10 * N * torch.finfo(torch.float64).eps
    x = torch.randn(3, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    assert torch.allclose(
        block(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=10 * N * torch.finfo(torch.float64).eps
    )


@pytest.mark.parametrize("kernel_size", [3, None], ids=["local", "full"])
@pytest.mark.parametrize("bottleneck", [1, 2])
@pytest.mark.parametrize("act", [GroupSort, nn.ReLU])
@pytest.mark.parametrize("gate", [-3.0, 0.0, 3.0])
def test_a_convex_block_is_1_lipschitz(kernel_size, bottleneck, act, gate):
    block = trained(ConvexBlock(spec(kernel_size, act=act), CHANNELS, (SIDE, SIDE), bottleneck))
    nn.init.constant_(block.gate, gate)
    largest = float(torch.linalg.matrix_norm(jacobian(block), 2))
    assert largest <= 1 + 10 * N * torch.finfo(torch.float64).eps
    assert largest > 1 / (1 + math.exp(-gate)) / 2  # a bound that means something


def test_a_free_block_is_the_sum():
    block = FreeBlock(spec(), CHANNELS)
    x = torch.randn(2, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    assert torch.equal(block(x), x + block.branch(x))
    identity = FreeBlock(spec(act=nn.Identity), CHANNELS)
    for unit in identity.branch:
        nn.init.dirac_(unit.conv.weight.data.view(CHANNELS, CHANNELS, 1)).squeeze(-1)
        unit.conv.shifts.data.copy_(torch.eye(CHANNELS)[:, : CHANNELS // 2])
    shifted = identity.branch(x)
    assert torch.allclose(shifted.norm(), x.norm())  # so that the sum may be twice as long
    assert float(torch.linalg.matrix_norm(jacobian(identity), 2)) > 1.5


def test_units_have_a_bias_where_there_is_no_norm():
    plain, normed = ConvUnit(spec(), 4, 4), ConvUnit(spec(norm=nn.BatchNorm2d), 4, 4)
    assert plain.conv.bias is not None
    assert normed.conv.bias is None
    assert isinstance(normed.norm, nn.BatchNorm2d)


class Steep(nn.ReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


@pytest.mark.parametrize(("slope", "constant"), [(0.01, 1), (-1.0, 1), (1.0, 1), (3.0, math.inf), (-3.0, math.inf)])
def test_a_slope_above_one_breaks_the_bound(slope, constant):
    steep = spec(act=partial(nn.LeakyReLU, negative_slope=slope))
    assert steep.lipschitz == constant
    largest = float(torch.linalg.matrix_norm(jacobian(IsometryBlock(steep, CHANNELS)), 2))
    assert (largest > 1 + 10 * N * torch.finfo(torch.float64).eps) == (constant > 1)


def test_a_subclass_is_not_taken_for_what_it_derives_from():
    assert spec(act=Steep).lipschitz == math.inf


def test_a_spec_knows_what_it_can_promise():
    assert spec().lipschitz == 1
    assert spec(act=nn.ReLU).lipschitz == 1
    assert spec(act=nn.GELU).lipschitz == math.inf
    assert spec(norm=nn.BatchNorm2d).lipschitz == math.inf
    assert UnitSpec(3, None, GroupSort, RULE, conv_layer=nn.Conv2d).lipschitz == math.inf


def test_an_isometry_refuses_a_bottleneck():
    with pytest.raises(ValueError, match="expected an isometry without a bottleneck"):
        IsometryBlock(spec(), CHANNELS, bottleneck=2)
    assert set(BLOCKS) == {"isometry", "convex", "free"}


MODELS = {
    "isometry-local": {"block": "isometry", "support": "local"},
    "isometry-full": {"block": "isometry", "img_size": 8},
    "convex-local": {"block": "convex", "support": "local", "widths": (4, 8)},
    "convex-full": {"block": "convex", "img_size": 8, "widths": (4, 8)},
    "convex-bottleneck": {"block": "convex", "support": "local", "bottleneck": 2},
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_models_keep_the_bound_that_they_state(options):
    layout = {"depths": (1, 1), "widths": (4, 16), "stem_width": 4, "dtype": torch.float64} | options
    model = OrthoResNet(**layout, update=RULE)
    assert model.lipschitz == 1
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model(x).sum().backward()
    model.projunn_step()
    j = jacobian(model.forward_features, 3, 8)
    singular = torch.linalg.svdvals(j)
    slack = 10 * 192 * torch.finfo(torch.float64).eps
    assert float(singular.max()) <= 1 + slack
    if options["block"] == "isometry":
        assert float(singular.min()) >= 1 - slack


def test_models_without_a_bound_say_so():
    layout = {"depths": (1,), "widths": (8,), "stem_width": 8, "support": "local"}
    assert OrthoResNet(**layout).lipschitz == math.inf
    assert OrthoResNet(**layout, block="convex", norm_layer="batchnorm2d").lipschitz == math.inf
    assert OrthoResNet(**layout, block="convex", act_layer="gelu").lipschitz == math.inf
    assert OrthoResNet(**layout, block="convex", act_layer="relu").lipschitz == 1
    convolution = type("Plain", (OrthogonalConv2d,), {})
    assert OrthoResNet(**layout, block="convex", conv_layer=convolution).lipschitz == math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "plain"}, "expected block in"),
        ({"support": "global"}, "support in"),
        ({"depths": (1, 1)}, "as many depths as widths"),
        ({"support": "full", "img_size": None}, "expected img_size with full support"),
        ({"block": "isometry", "stem_width": 2}, r"to hold all pixels of a stride 1 .* 3 \* 1 \* 1, got 2"),
        ({"block": "isometry", "depths": (1, 1), "widths": (8, 16)}, r"a stride 2 .* 8 \* 2 \* 2, got 16"),
    ],
)
def test_bad_options(options, message):
    layout = {"depths": (1,), "widths": (8,), "stem_width": 8, "support": "local"} | options
    with pytest.raises(ValueError, match=message):
        OrthoResNet(**layout)

"""The bound of a module is one, is met by what is linear, and is refused where nothing is known."""

import math

import pytest
import timm
import torch
from closeness import assert_rounding
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unitary_layers import (
    GroupSort,
    HadamardLinear,
    ModReLU,
    OrthogonalConv2d,
    OrthogonalConvTranspose2d,
    StiefelConv2d,
    UnitaryGroupConv,
    UnitaryLinear,
    UnitaryRNN,
)
from unitary_layers.linalg import dihedral_moves
from unitary_layers.linalg.unitary import double
from unitary_layers.robust import (
    AbsActivation,
    BatchCentering,
    HouseholderActivation,
    LayerCentering,
    NormPool,
    ProjectionPool,
    ReflectBlock,
    SpatialShift,
    UnitNormLinear,
    lipschitz_bound,
)

DD = {"dtype": torch.float64}
SHAPE = (4, 6, 6)  # channels, height, width of what every layer of KNOWN takes


def normed(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, **DD)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.1, 2)
    return norm


# What keeps the shape comes first; then what does not. Both take SHAPE.
KEEPING = {
    "orthogonal": lambda: OrthogonalConv2d(4, 4, 3, padding=1, **DD),
    "orthonormal": lambda: StiefelConv2d(4, 4, 3, padding=1, **DD),
    "reflect": lambda: ReflectBlock(OrthogonalConv2d(4, 2, 3, padding=1, **DD)),
    "linear": lambda: nn.Linear(6, 6, **DD),
    "unitary": lambda: UnitaryLinear(6, 6, **DD),
    "group": lambda: UnitaryGroupConv(4, 4, dihedral_moves(3), **DD),
    "signs": lambda: HadamardLinear(6, block=2, stages=2, **DD),
    "group sort": GroupSort,
    "householder": lambda: HouseholderActivation(4, **DD),
    "abs": AbsActivation,
    "shift": SpatialShift,
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(-1.5),
    "tanh": nn.Tanh,
    "layer centering": lambda: LayerCentering(list(SHAPE), **DD),
    "batch centering": lambda: BatchCentering(4, **DD),
    "batch norm": lambda: normed(4),
    "dropout": lambda: nn.Dropout(0.5),
}
CHANGING = {
    "transposed": lambda: OrthogonalConvTranspose2d(4, 1, 2, stride=2, **DD),
    "projection": lambda: ProjectionPool(4, **DD),
    "norm pool": NormPool,
    "max": lambda: nn.MaxPool2d(2),
    "max, padded": lambda: nn.MaxPool2d(3, stride=4, padding=1, ceil_mode=True),
    "mean": lambda: nn.AvgPool2d((2, 3)),
    "mean, padded": lambda: nn.AvgPool2d(4, padding=1, ceil_mode=True),
    "mean of all": lambda: nn.AdaptiveAvgPool2d(1),
    "padding": lambda: nn.ZeroPad2d(2),
    "pixels": lambda: nn.PixelUnshuffle(2),
    "rows": lambda: UnitNormLinear(6, 9, **DD),
    "flat": nn.Flatten,
}
KNOWN = KEEPING | CHANGING


def distance_ratio(module: nn.Module, seed: int) -> tuple[float, float]:
    """The largest singular value of the Jacobian, and what two inputs far apart are enlarged by."""
    x, y = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(seed), **DD)
    with torch.no_grad():
        far = float((module(3 * y) - module(x)).norm() / (3 * y - x).norm())
    jacobian = torch.autograd.functional.jacobian(module, x).flatten(-len(SHAPE)).flatten(0, -2)
    return float(torch.linalg.matrix_norm(jacobian, 2)), far


@pytest.mark.parametrize("name", KNOWN)
def test_no_distance_grows_by_more(name):
    module = KNOWN[name]().eval()
    bound = lipschitz_bound(module)
    for seed in range(3):
        for ratio in distance_ratio(module, seed):
            assert ratio <= bound * (1 + 1000 * torch.finfo(torch.float64).eps)


@given(st.lists(st.sampled_from(sorted(KEEPING)), min_size=1, max_size=4), st.sampled_from(sorted(KNOWN)))
def test_the_bound_of_a_chain_is_one_and_the_product(keeping, last):
    layers = [KNOWN[name]().eval() for name in (*keeping, last)]
    nested = nn.Sequential(nn.Sequential(*layers[:-1]), layers[-1]).eval()
    bound = lipschitz_bound(nested)
    assert bound == pytest.approx(math.prod(map(lipschitz_bound, layers)))
    assert max(distance_ratio(nested, 0)) <= bound * (1 + 1000 * torch.finfo(torch.float64).eps)


@pytest.mark.parametrize("name", ["orthogonal", "linear", "unitary", "batch norm", "mean", "shift", "transposed"])
def test_the_bound_of_a_linear_map_is_its_norm(name):
    module = KNOWN[name]().eval()
    assert_rounding(torch.tensor(distance_ratio(module, 0)[0]), torch.tensor(lipschitz_bound(module)), n=144)


UNKNOWN = {
    "a convolution": lambda: nn.Conv2d(4, 4, 3),
    "a norm": lambda: nn.LayerNorm(6),
    "gelu": nn.GELU,
    "softplus, which jumps where it becomes linear": lambda: nn.Softplus(threshold=0),
    "a recurrence": lambda: UnitaryRNN(6, 6),
    "modrelu": lambda: ModReLU(4),
    "a rounded weight": lambda: UnitaryLinear(6, 6, weight_bits=4),
    "windows that overlap": lambda: nn.MaxPool2d(3, stride=2),
    "windows with gaps": lambda: nn.MaxPool2d(2, dilation=2),
    "another divisor": lambda: nn.AvgPool2d(2, divisor_override=1),
    "several windows": lambda: nn.AdaptiveAvgPool2d((1, 2)),
    "statistics of a batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_unknown_is_refused_by_its_place(name):
    net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), UNKNOWN[name]())).eval()
    with pytest.raises(ValueError, match=r"^at '1': at '1': expected "):
        lipschitz_bound(net)


@pytest.mark.parametrize("name", ["batch norm", "batch centering", "dropout"])
def test_what_training_changes_is_refused_there(name):
    with pytest.raises(ValueError, match="in evaluation, got one in training"):
        lipschitz_bound(KNOWN[name]().train())


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Shown(nn.Linear):
    def extra_repr(self) -> str:
        return "mine"


@pytest.mark.parametrize(
    "module", [Residual(nn.ReLU()), Doubled(3, 3), timm.layers.BatchNormAct2d(3, act_layer=nn.SiLU)]
)
def test_a_subclass_with_a_forward_of_its_own_is_refused(module):
    with pytest.raises(ValueError, match=f"got one of {type(module).__name__} itself"):
        lipschitz_bound(module.eval())


def test_a_forward_that_was_replaced_or_has_hooks_is_refused():
    module = nn.ReLU()
    module.forward = lambda x: 10 * x
    with pytest.raises(ValueError, match="expected the forward pass of ReLU, got one of ReLU itself"):
        lipschitz_bound(module)
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        module = nn.Sequential(nn.ReLU())
        handle = getattr(module[0], register)(lambda module, *values: None)
        with pytest.raises(ValueError, match="at '0': expected a ReLU without forward hooks"):
            lipschitz_bound(module)
        handle.remove()
        assert lipschitz_bound(module) == 1


def test_a_block_is_as_known_as_its_layer():
    block = ReflectBlock(UnitaryLinear(6, 4))
    block.layer = UnitaryLinear(6, 4, weight_bits=2)
    with pytest.raises(ValueError, match="expected a UnitaryLinear without weight_bits"):
        lipschitz_bound(block)


@pytest.mark.parametrize("bound", [0.5, 1.5])
def test_a_block_has_not_the_bound_of_its_layer(bound):
    class Mine(UnitaryLinear):
        pass

    lipschitz_bound.register(Mine, lambda module: bound)
    block = ReflectBlock(Mine(6, 4, **DD))
    if bound > 1:
        with pytest.raises(ValueError, match=r"that enlarges no distance, got one of bound 1\.5"):
            lipschitz_bound(block)
    else:  # it is the identity where all of W x + b is negative
        assert lipschitz_bound(block) == 1


def test_a_subclass_with_the_same_forward_is_known():
    module = Shown(3, 3)
    assert lipschitz_bound(module) == pytest.approx(float(torch.linalg.matrix_norm(module.weight.detach(), 2)))


def test_a_layer_that_is_used_twice_counts_twice():
    layer = nn.Linear(6, 6, **DD)
    shared = nn.Sequential(layer, nn.ReLU(), layer)
    assert lipschitz_bound(shared) == pytest.approx(lipschitz_bound(layer) ** 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_matrices_of_other_dtypes(dtype):
    module = nn.Linear(6, 6, dtype=dtype)
    assert lipschitz_bound(module) == pytest.approx(float(torch.linalg.matrix_norm(double(module.weight.detach()), 2)))


def test_a_module_of_ones_own_becomes_known():
    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    lipschitz_bound.register(Twice, lambda module: 2.0)
    assert lipschitz_bound(nn.Sequential(Twice(), nn.Sequential(Twice()))) == 4

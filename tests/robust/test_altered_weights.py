"""A bound is of the weights that a layer works with: what has altered them is refused, or makes the bound larger."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from unitary_layers import (
    GroupSort,
    OrthogonalConv2d,
    OrthogonalConvTranspose2d,
    StiefelConv2d,
    StiefelConvTranspose2d,
    UnitaryGroupConv,
    UnitaryLinear,
    retract_,
    revert,
)
from unitary_layers.linalg import dihedral_moves
from unitary_layers.robust import ReflectBlock, UnitNormLinear, lipschitz_bound
from unitary_layers.testing import operator_matrix

LAYERS = {
    "linear": lambda: UnitaryLinear(4, 4, bias=False),
    "complex": lambda: UnitaryLinear(4, 3, dtype=torch.complex64),
    "group": lambda: UnitaryGroupConv(4, 4, dihedral_moves(3)),
    "local": lambda: OrthogonalConv2d(4, 4, 3),
    "full": lambda: OrthogonalConv2d(4, 4, input_size=4),
    "transposed": lambda: OrthogonalConvTranspose2d(4, 4, 3),
    "kernel": lambda: StiefelConv2d(4, 4, 3),
    "complex kernel": lambda: StiefelConv2d(4, 4, 3, dtype=torch.complex64, normalize=True),
    "transposed kernel": lambda: StiefelConvTranspose2d(4, 4, 3),
}
EVERY = [(kind, name) for kind, make in LAYERS.items() for name in make()._unitary]


class Three(nn.Module):
    def forward(self, weight):
        return 3 * weight


def parametrised(layer, name):
    parametrize.register_parametrization(layer, name, Three())


def by_a_norm(layer, name):
    parametrizations.weight_norm(layer, name)
    with torch.no_grad():
        layer.parametrizations[name].original0.mul_(3)


def by_a_plain_tensor(layer, name):
    weight = getattr(layer, name).detach()
    delattr(layer, name)
    setattr(layer, name, 3 * weight)


def by_one_entry(layer, name):
    getattr(layer, name).data.flatten()[1] += 2


def by_all(layer, name):
    getattr(layer, name).data.mul_(3)


def by_a_nan(layer, name):
    with torch.no_grad():
        getattr(layer, name).fill_(torch.nan)


ALTERED = {
    "parametrised": parametrised,
    "a norm": by_a_norm,
    "a plain tensor": by_a_plain_tensor,
    "not finite": by_a_nan,
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("how", ALTERED)
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_weight_that_is_not_unitary_proves_nothing(kind, name, how, training):
    layer = LAYERS[kind]().train(training)
    assert lipschitz_bound(layer) >= 1
    ALTERED[how](layer, name)
    with pytest.raises(ValueError, match=f"^at '0': expected .*{name!r}.*, got .*; "):
        lipschitz_bound(nn.Sequential(layer))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_an_entry_that_was_written_unseen_proves_nothing(kind, name, training):
    layer = LAYERS[kind]().train(training)
    bound, weight = lipschitz_bound(layer), layer.unitary_weight(name)
    by_one_entry(layer, name)
    if not training and not weight.seen.is_of(weight.parameter):  # a forward pass would repair it
        assert lipschitz_bound(layer) == bound
    else:
        with pytest.raises(ValueError, match=r"\|W\^H W - I\|_F <= .*, got .*; call retract_"):
            lipschitz_bound(layer)


def test_a_block_asks_for_the_weight_of_its_layer():
    block = ReflectBlock(UnitaryLinear(4, 4))
    parametrised(block.layer, "weight")
    with pytest.raises(ValueError, match="unitary weight 'weight'"):
        lipschitz_bound(block)


def test_a_weight_of_inference_mode_is_looked_at():
    with torch.inference_mode():
        layer = UnitaryLinear(4, 4, bias=False).eval()
        assert lipschitz_bound(layer) == 1
        layer.weight.mul_(3)
    with pytest.raises(ValueError, match=r"\|W\^H W - I\|_F <= "):
        lipschitz_bound(layer)


def test_a_weight_without_values_is_refused():
    with pytest.raises(ValueError, match="to have values, got a UnitaryLinear on the meta device"):
        lipschitz_bound(UnitaryLinear(4, 4, device="meta"))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_weight_off_the_manifold_counts_in_evaluation_alone(kind):
    layer = LAYERS[kind]().eval()
    before = lipschitz_bound(layer)
    for name in layer._unitary:
        by_all(layer, name)  # a whole weight, which a pass in evaluation notices
    assert lipschitz_bound(layer) == before
    with pytest.raises(ValueError, match="retract_"):
        lipschitz_bound(layer.train())
    retract_(layer)
    assert lipschitz_bound(layer) == before


@pytest.mark.parametrize("kind", LAYERS)
def test_what_torch_does_to_a_layer_leaves_its_bound(kind):
    layer = LAYERS[kind]()
    bound = lipschitz_bound(layer)
    other = LAYERS[kind]()
    other.load_state_dict(layer.state_dict(), assign=True)
    for same in (copy.deepcopy(layer), layer.double(), layer.requires_grad_(False), other):
        assert lipschitz_bound(same) == bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_that_are_rounded_to_half_precision_are_refused(dtype):
    alone = UnitaryLinear(4, 4).to(dtype)
    mixed = nn.Sequential(UnitaryLinear(4, 4, bias=False), nn.Sequential(GroupSort(), nn.Linear(4, 4))).to(dtype)
    for module in (alone, mixed, nn.Sequential(mixed[1], nn.Sequential(mixed[0]))):
        with pytest.raises(ValueError, match=f"expected .* in float32 or better, got .*{dtype}"):
            lipschitz_bound(module)
        assert lipschitz_bound(module.float()) > 0
        module.to(dtype)
    assert lipschitz_bound(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).to(dtype)) > 0


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4, bias=False), lambda: UnitNormLinear(4, 3, bias=False)])
@pytest.mark.parametrize("how", [parametrised, by_a_norm, by_one_entry, by_a_plain_tensor])
def test_a_matrix_is_bounded_as_it_is_used(make, how):
    layer = make()
    how(layer, "weight")
    used = layer(torch.eye(4)).detach()
    assert lipschitz_bound(layer) == pytest.approx(float(torch.linalg.matrix_norm(used, 2)), rel=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("make", [StiefelConv2d, StiefelConvTranspose2d])
def test_options_that_were_changed_count_as_they_are_used(make, normalize):
    layer = make(1, 1, 4, stride=2, bias=False, normalize=normalize)
    nn.init.constant_(layer.weight, 1 / 4)  # orthonormal: one row of norm 1
    before = lipschitz_bound(layer)
    assert before == layer.lipschitz
    layer.stride = (1, 1)  # as those do who keep the resolution of a network
    norm = float(torch.linalg.matrix_norm(operator_matrix(layer, (1, 24, 24)).detach(), 2))
    assert 1.8 * before < norm <= lipschitz_bound(layer) * (1 + 1e-5)
    assert lipschitz_bound(layer) == pytest.approx(2 * before)


def test_a_layer_that_was_reverted_is_bounded_as_it_is():
    net = nn.Sequential(UnitaryLinear(4, 4))
    revert(net)
    by_all(net[0], "weight")
    assert lipschitz_bound(net) == pytest.approx(3)

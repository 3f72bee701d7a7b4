"""Which parameters are unitary weights: neither what other modules do matters, nor is a wrong one taken for one."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from unitary_layers import ProjUNN, UnitaryLinear, UnitaryRNN, attach, projunn_step
from unitary_layers.training import unitary_weights

N = 4


def dropped(layer: nn.Module) -> None:
    """What old wrappers that drop weights do before the first forward pass."""
    raw = layer.weight
    del layer.weight
    layer.register_parameter("weight_raw", nn.Parameter(raw.detach().clone()))


def dropped_and_used(layer: nn.Module) -> None:
    dropped(layer)
    layer.weight = torch.dropout(layer.weight_raw, 0.5, True)


def nothing(layer: nn.Module) -> None:
    layer.weight = None


class Raising(nn.Module):
    ready = False

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.ready:
            raise RuntimeError("this one is not to be computed")
        return weight


def parametrised(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", Raising())
    layer.parametrizations.weight[0].ready = True


@pytest.mark.parametrize("change", [dropped, dropped_and_used, nothing, parametrised], ids=lambda f: f.__name__)
@pytest.mark.parametrize("trigger", ["ProjUNN", "attach", "projunn_step"])
def test_a_step_does_not_depend_on_what_became_of_layers_that_it_does_not_train(change, trigger):
    layer = UnitaryLinear(N, N)
    twin = copy.deepcopy(layer)
    for trained, stranger in ((twin, None), (layer, UnitaryLinear(N, N))):
        optimizer: torch.optim.Optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        if trigger == "ProjUNN":
            optimizer = ProjUNN(trained.parameters(), lr=0.1)
        if trigger == "attach":
            attach(trained, optimizer)
        if stranger is not None:
            change(stranger)
        trained(torch.eye(N)).square().sum().backward()
        optimizer.step() if trigger != "projunn_step" else projunn_step(trained)
    assert int(layer.weight_count) == 1
    assert torch.equal(layer.weight, twin.weight)


@pytest.mark.parametrize("change", [dropped, nothing], ids=lambda f: f.__name__)
def test_a_weight_that_a_layer_lacks_is_none_of_its_tree(change):
    net = nn.Sequential(UnitaryLinear(N, N), UnitaryLinear(N, N))
    change(net[0])
    assert [weight.name for weight in unitary_weights(net)] == ["1.weight"]


WRONG: dict[str, Callable[[], nn.Parameter]] = {
    "shape": lambda: nn.Embedding(7, N).weight,
    "half": lambda: nn.Parameter(torch.eye(N, dtype=torch.bfloat16)),
    "complex": lambda: nn.Parameter(torch.eye(N, dtype=torch.complex64)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", ["weight", "weight_hh_l0"])
@pytest.mark.parametrize("is_gone", [False, True])
def test_what_cannot_stand_for_a_weight_is_not_assigned(wrong, name, is_gone):
    layer = UnitaryLinear(N, N) if name == "weight" else UnitaryRNN(3, N)
    given = wrong()
    if is_gone:
        delattr(layer, name)
    before, kept = copy.deepcopy(layer.state_dict()), given.detach().clone()
    with pytest.raises(ValueError, match=rf"in the place of the unitary weight '\w+\.{name}', got .*nothing was"):
        setattr(layer, name, given)
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.equal(given, kept)

"""A unitary weight that is computed from other parameters, which nothing keeps unitary: who trains it is told so."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from unitary_layers import (
    OrthogonalConv2d,
    ProjUNN,
    StiefelConv2d,
    UnitaryLinear,
    UnitaryRNNCell,
    attach,
    projunn_step,
    retract_,
)
from unitary_layers.testing import assert_unitary

N = 4


class Three(nn.Module):
    def forward(self, weight):
        return 3 * weight


def parametrised(layer):
    parametrize.register_parametrization(layer, "weight", Three())


COMPUTED = {
    "parametrised": parametrised,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "pruned": lambda layer: prune.identity(layer, "weight"),
}
STEPS = {
    "SGD": lambda net: torch.optim.SGD(net.parameters(), lr=0.1).step,
    "ProjUNN": lambda net: ProjUNN(net.parameters(), lr=0.1).step,
    "projunn_step": lambda net: net[0].projunn_step,
    "attach": lambda net: attached(net).step,
}


def attached(net):
    attach(net, optimizer := torch.optim.SGD(net.parameters(), lr=0.1))
    return optimizer


def loss_of(net):
    return net(torch.randn(3, N)).square().sum()


@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.parametrize("step", STEPS)
def test_whoever_trains_it_is_told(how, step):
    net = nn.Sequential(UnitaryLinear(N, N), nn.Linear(N, 2))
    COMPUTED[how](net[0])
    with pytest.warns(UserWarning, match=r"'weight' of \w+ is computed .*; undo that \(parametrize.remove_parametri"):
        loss = loss_of(net)
    loss.backward()
    stepped = STEPS[step](net)
    if step in ("SGD", "ProjUNN"):
        stepped()
    else:
        with warnings.catch_warnings():  # torch's own, of the gradient of what is no leaf
            warnings.filterwarnings("ignore", message="The .grad attribute")
            with pytest.raises(ValueError, match=r"what prunes or parametrises it is to be undone \(parametrize"):
                stepped()
    loss_of(net)  # says it once


LOCAL = partial(OrthogonalConv2d, kernel_size=3)


@pytest.mark.parametrize("make", [UnitaryLinear, LOCAL, partial(StiefelConv2d, kernel_size=3)])
def test_what_has_been_undone_trains(make):
    layer = make(N, N)
    shape = (2, N) if make is UnitaryLinear else (2, N, 6, 6)
    parametrised(layer)
    with pytest.warns(UserWarning, match="'weight' of"):
        layer(torch.randn(shape))
    parametrize.remove_parametrizations(layer, "weight")
    retract_(layer)
    layer(torch.randn(shape)).square().sum().backward()
    projunn_step(layer)
    assert_unitary(layer)


def test_a_state_of_a_recurrence_is_told_by_its_name():
    cell = UnitaryRNNCell(N, N)
    parametrize.register_parametrization(cell, "weight_hh", Three())
    with pytest.warns(UserWarning, match="'weight_hh' of"):
        cell(torch.randn(2, N))


@pytest.mark.parametrize("how", COMPUTED)
def test_what_nothing_trains_is_let_be(how):
    layer = UnitaryLinear(N, N)
    COMPUTED[how](layer)
    layer.eval()(torch.randn(2, N))
    with torch.no_grad():
        layer.train()(torch.randn(2, N))
    layer.requires_grad_(False)
    net = nn.Sequential(layer, nn.Linear(N, N), UnitaryLinear(N, N))
    for _ in range(2):
        loss_of(net).backward()
        projunn_step(net)

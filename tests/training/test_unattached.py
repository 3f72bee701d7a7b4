"""Weights that an optimiser writes which was never attached are reported: once, and only where they move."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from unitary_layers import ProjUNN, UnitaryLinear, UnitaryRNN, UpdateRule, attach

N = 6
X = torch.randn(4, N, generator=torch.Generator().manual_seed(0))


def model(gradient: str, **rule: object) -> nn.Sequential:
    layer = UnitaryLinear(N, N, gradient=gradient, update=UpdateRule(**rule))
    return nn.Sequential(layer, nn.Linear(N, 1))


def messages(net: nn.Module, step: Callable[[], object], steps: int = 5) -> list[str]:
    """What a training of some steps warns of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(steps):
            output = net(X)
            (output[0] if isinstance(output, tuple) else output).square().mean().backward()
            step()
    return [str(warning.message) for warning in found]


every_gradient = pytest.mark.parametrize("gradient", ["dense", "factored"])


@every_gradient
def test_who_takes_the_gradients_hears_nothing(gradient):
    def attached(net: nn.Module) -> Callable[[], object]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        attach(net, optimizer)
        return optimizer.step

    def by_hand(net: nn.Module) -> Callable[[], object]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        return lambda: (net[0].projunn_step(), optimizer.step())

    def accumulating(net: nn.Module) -> Callable[[], object]:
        step, count = attached(net), []
        return lambda: count.append(0) or (step() if len(count) % 2 == 0 else None)

    for trigger in (attached, accumulating, by_hand, lambda net: ProjUNN(net.parameters(), lr=0.01).step):
        net = model(gradient)
        assert messages(net, trigger(net)) == []


@every_gradient
def test_weights_that_cannot_move_have_nothing_to_miss(gradient):
    frozen, still = model(gradient), model(gradient, lr=0.0)
    frozen[0].weight.requires_grad_(False)
    for net, trained in (
        (frozen, list(frozen.parameters())),
        (still, [p for name, p in still.named_parameters() if name != "0.weight"]),
    ):
        assert messages(net, torch.optim.SGD(trained, lr=0.01).step) == []


@every_gradient
def test_a_layer_of_many_weights_names_each(gradient):
    net = UnitaryRNN(N, 4, num_layers=2, gradient=gradient)
    found = messages(net, torch.optim.SGD(net.parameters(), lr=0.01).step)
    names = ("weight_hh_l0", "weight_hh_l1")
    assert [name in message for name, message in zip(names, found, strict=True)] == [True] * 2


@every_gradient
def test_an_optimiser_that_writes_a_weight_is_reported_once_and_again_after_a_step_of_ours(gradient):
    net = model(gradient)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def alone() -> None:
        optimizer.step()
        optimizer.zero_grad()

    (message,) = messages(net, alone)
    assert "'weight' (6, 6) was written by something else" in message
    net[0](X).square().mean().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net[0].projunn_step()
    assert len(messages(net, alone)) == 1

"""The one writer of weights: what a step changes, what it leaves, and in which order."""

import math

import pytest
import torch
from torch import nn

from unitary_layers import (
    UnitaryLinear,
    UnitaryRNN,
    UpdateRule,
    nearest_unitary,
    projunn_step,
    retract_,
    unitarity_error_of,
)
from unitary_layers.testing import assert_unitary
from unitary_layers.training import step as writer
from unitary_layers.training import unitary_weights


def model(**options) -> nn.Sequential:
    rule = UpdateRule(lr=0.1, **options)
    return nn.Sequential(nn.Linear(4, 6), UnitaryLinear(6, 6, update=rule), nn.Tanh(), UnitaryLinear(6, 6, update=rule))


def backward(module: nn.Module, factor: float = 1.0) -> None:
    (module(torch.randn(8, 4)).square().sum() * factor).backward()


def copies(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_a_step_moves_the_unitary_weights_only_and_drops_their_gradients():
    net = model()
    backward(net)
    before = copies(net)
    projunn_step(net)
    moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
    assert moved == [False, False, True, False, True, False]
    assert [p.grad is None for p in net.parameters()] == moved
    assert_unitary(net)


def test_without_gradients_nothing_happens():
    net = model()
    before, state = copies(net), {k: v.clone() for k, v in net.state_dict().items()}
    projunn_step(net)
    projunn_step(nn.Linear(2, 2))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())  # the counters neither


def test_lr_scale_and_rule_lr_are_the_same_thing():
    first, second = model(), model()
    second.load_state_dict(first.state_dict())
    for layer in (second[1], second[3]):
        layer.update = layer.update.with_lr(0.1 * 0.25)
    x = torch.randn(8, 4)
    for net in (first, second):
        net(x).square().sum().backward()
    projunn_step(first, lr_scale=0.25)
    projunn_step(second)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_raises_before_anything_changes(bad):
    net = model()
    backward(net)
    net[3].weight.grad[2, 1] = bad  # the last weight: the first has been looked at and found good
    before, gradients = copies(net), [p.grad.clone() for p in net.parameters()]
    with pytest.raises(
        RuntimeError, match=r"finite gradient of the unitary weight '3.weight' \(6, 6\), got NaN or inf"
    ):
        projunn_step(net)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(
        torch.equal(p.grad.nan_to_num(7), g.nan_to_num(7)) for p, g in zip(net.parameters(), gradients, strict=True)
    )
    assert int(net[1].weight_count) == 0


def test_skip_leaves_out_only_the_weight_with_the_bad_gradient():
    net = model(nonfinite="skip")
    backward(net)
    net[3].weight.grad[0, 0] = math.nan
    before = copies(net)
    projunn_step(net)
    moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
    assert moved == [False, False, True, False, False, False]
    assert net[3].weight.grad is None


def test_an_error_while_computing_leaves_every_weight_alone(monkeypatch):
    net = model()
    net[3].update = UpdateRule(lr=0.2)  # else the two would move together
    backward(net)
    before = copies(net)
    real = UpdateRule.change

    def fails_on_the_second(self, weight, *args):
        if weight.data_ptr() == net[3].weight.data_ptr():
            raise torch.linalg.LinAlgError("did not converge")
        return real(self, weight, *args)

    monkeypatch.setattr(UpdateRule, "change", fails_on_the_second)
    with pytest.raises(RuntimeError, match=r"weights '3.weight' at lr=0.2: did not converge; no unitary weight was"):
        projunn_step(net)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert net[1].weight.grad is not None


def test_a_huge_gradient_still_gives_a_unitary_weight():
    for variant in ("D", "T"):
        net = model(variant=variant)
        backward(net, 1e10)
        projunn_step(net)
        assert_unitary(net)


def test_a_frozen_weight_stays():
    net = model()
    backward(net)
    net[1].weight.requires_grad_(False)
    before = net[1].weight.detach().clone()
    projunn_step(net)
    assert torch.equal(net[1].weight, before)


def test_a_tied_weight_is_stepped_once():
    net = model()
    net[3].weight = net[1].weight
    assert [w.name for w in unitary_weights(net)] == ["1.weight"]
    backward(net)
    projunn_step(net)
    assert int(net[1].weight_count) == 1
    assert int(net[3].weight_count) == 0


def test_names_and_numbers_of_the_weights():
    net = nn.ModuleDict({"rnn": UnitaryRNN(2, 3, num_layers=2, bidirectional=True), "head": UnitaryLinear(6, 6)})
    weights = list(unitary_weights(net))
    names = [
        "rnn.weight_hh_l0",
        "rnn.weight_hh_l0_reverse",
        "rnn.weight_hh_l1",
        "rnn.weight_hh_l1_reverse",
        "head.weight",
    ]
    assert [w.name for w in weights] == names
    assert [w.index for w in weights] == [0, 1, 2, 3, 4]


def test_the_graph_notices_that_a_weight_was_changed():
    layer = UnitaryLinear(3, 3)
    x = torch.randn(2, 3, requires_grad=True)
    loss = layer(layer(x)).sum()
    loss.backward(retain_graph=True)
    layer.projunn_step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_weight_is_retracted_when_its_period_is_over(monkeypatch):
    layer = UnitaryLinear(4, 4, update=UpdateRule(retract_every=3))
    calls = []
    monkeypatch.setattr(
        writer, "nearest_unitary", lambda w: calls.append(int(layer.weight_count)) or nearest_unitary(w)
    )
    for _ in range(7):
        layer(torch.randn(2, 4)).square().sum().backward()
        layer.projunn_step()
    assert calls == [3, 6]


def test_retract_brings_back_every_weight():
    net = model()
    net[1].weight.requires_grad_(False)
    with torch.no_grad():
        for layer in (net[1], net[3]):
            layer.weight.add_(0.1 * torch.randn(6, 6))
    reference = nearest_unitary(net[1].weight)
    assert unitarity_error_of(net) > 0.1
    retract_(net)
    assert_unitary(net)
    assert torch.equal(net[1].weight, reference)


def test_retract_refuses_what_is_not_finite_and_changes_nothing():
    net = model()
    with torch.no_grad():
        net[1].weight.mul_(2)
        net[3].weight[0, 0] = math.nan
    before = copies(net)
    with pytest.raises(ValueError, match=r"finite unitary weight '3.weight', got NaN"):
        retract_(net)
    assert all(torch.equal(p.nan_to_num(), q.nan_to_num()) for p, q in zip(net.parameters(), before, strict=True))


def test_unitarity_error_of_a_tree():
    assert unitarity_error_of(nn.Linear(2, 2)) == 0
    net = model()
    with torch.no_grad():
        net[3].weight.mul_(2)
    torch.testing.assert_close(float(unitarity_error_of(net)), 3 * math.sqrt(6), rtol=1e-6, atol=0)

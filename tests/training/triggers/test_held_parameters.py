"""An optimiser that holds more than was attached to it, or less, trains what it is to train and says so."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from unitary_layers import UnitaryLinear, attach, projunn_step, unitarity_error_of
from unitary_layers.testing import assert_unitary

N = 6
X = torch.randn(5, N, generator=torch.Generator().manual_seed(0))
STRANGER = r"was about to take the unitary weight 'UnitaryLinear.weight' \(6, 6\) .* attached to Sequential alone"
PART = r"AdamW holds a part of the Sequential alone: neither '0.bias' nor the unitary weight '0.weight', which moves"


def net() -> nn.Sequential:
    return nn.Sequential(UnitaryLinear(N, N), nn.Tanh(), nn.Linear(N, N))


def adamw(*modules: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for module in modules for p in module.parameters()], lr=0.01, weight_decay=0.5)


def said(optimizer: torch.optim.Optimizer, *modules: nn.Module, closes: bool = False, steps: int = 3) -> list[str]:
    """What a training of some steps warns of."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(module(X).square().mean() for module in modules)
        loss.backward()
        return loss

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(steps):
            if closes:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
    assert all(warning.filename == __file__ for warning in found)
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize("closes", [False, True], ids=["plain", "closing"])
@pytest.mark.parametrize("comes", ["first", "later"])
def test_a_weight_beside_the_attached_module_moves_by_its_own_rule_and_is_told_of_once(closes, comes):
    one, other = net(), net()
    optimizer = adamw(one, other) if comes == "first" else adamw(one)
    attach(one, optimizer)
    if comes == "later":
        assert said(optimizer, one, closes=closes) == []
        optimizer.add_param_group({"params": list(other.parameters())})
    before = other[0].weight.detach().clone()
    message, *more = said(optimizer, one, other, closes=closes)
    with pytest.warns(match=STRANGER):
        warnings.warn(message, stacklevel=1)
    assert more == []
    assert not torch.equal(other[0].weight, before)
    assert_unitary(one)
    assert_unitary(other)


def test_nothing_is_said_of_what_moves_otherwise_or_not_at_all():
    one, other = net(), net()
    optimizer = adamw(one, other)
    attach(one, optimizer)
    other[0].requires_grad_(False)
    assert said(optimizer, one, other) == []
    other[0].requires_grad_(True)
    for _ in range(3):
        (one(X) + other(X)).square().mean().backward()
        projunn_step(other)
        optimizer.step()
        optimizer.zero_grad()
    assert_unitary(other)


def test_a_module_that_was_detached_is_left_alone():
    one, other = net(), net()
    optimizer = adamw(one, other)
    attach(one, optimizer)
    attach(other, optimizer).remove()
    assert said(optimizer, one, other, steps=1) == []
    assert_unitary(one)
    assert unitarity_error_of(other) > 0.01  # AdamW wrote it


@pytest.mark.parametrize("closes", [False, True], ids=["plain", "closing"])
def test_an_optimiser_of_a_part_says_that_the_rest_moves_too(closes):
    whole = net()
    optimizer = adamw(whole[2])
    attach(whole, optimizer)
    message, *more = said(optimizer, whole, closes=closes)
    with pytest.warns(match=PART):
        warnings.warn(message, stacklevel=1)
    assert more == []


def test_a_factor_may_be_an_object_without_a_hash():
    @dataclass
    class Tenth:
        rate: float

        def __call__(self, group: dict) -> float:
            return 0.1 * group["lr"] / self.rate

    whole = net()
    optimizer = adamw(whole)
    attach(whole, optimizer, lr_scale=Tenth(0.01))
    assert said(optimizer, whole) == []
    assert_unitary(whole)


@pytest.mark.parametrize("how", ["frozen", "without the unitary weights", "attached in part"])
def test_an_optimiser_without_the_unitary_weights_says_nothing(how):
    whole = net()
    held = {"frozen": whole[2:], "without the unitary weights": whole, "attached in part": whole[2:]}[how]
    optimizer = torch.optim.AdamW([p for p in held.parameters() if p is not whole[0].weight], lr=0.01)
    if how == "frozen":
        whole[0].requires_grad_(False)
    attach(whole if how != "attached in part" else nn.Sequential(UnitaryLinear(N, N), *whole[2:]), optimizer)
    before = whole[0].weight.detach().clone()
    assert said(optimizer, whole) == []
    assert torch.equal(whole[0].weight, before) == (how != "without the unitary weights")

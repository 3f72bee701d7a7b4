"""What a user may plausibly write by mistake is answered by words that say what to do."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import StepLR

from unitary_layers import (
    OrthogonalConv2d,
    ProjUNN,
    UnitaryLinear,
    UnitaryRNN,
    attach,
    use_grad_scaler,
)
from unitary_layers.testing import assert_unitary


def net() -> nn.Sequential:
    return nn.Sequential(UnitaryLinear(4, 4), nn.Linear(4, 2))


def host() -> AdamW:
    return AdamW(nn.Linear(4, 2).parameters())


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


# What was written, the type of the error, and what it says.
SLIPS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "attach swapped": (lambda: attach(host(), net()), TypeError, "got attach(AdamW, Sequential): swap the two"),
    "attach without a module": (lambda: attach(host()), TypeError, "expected a module, got AdamW; attach(module, opt"),
    "attach parameters": (lambda: attach(net().parameters(), host()), TypeError, "pass the module itself"),
    "attach to a class": (lambda: attach(net(), AdamW), TypeError, "got the class AdamW: make one of its parameters"),
    "attach to a schedule": (lambda: attach(net(), StepLR(host(), 1)), TypeError, "StepLR: pass the optimiser that it"),
    "scaler swapped": (lambda: use_grad_scaler(scaler(), net()), TypeError, "GradScaler, Sequential): swap the two"),
    "optimiser of a model": (lambda: ProjUNN(net()), TypeError, "got a Sequential: pass its parameters()"),
    "optimiser of a layer": (lambda: ProjUNN(net()[0]), TypeError, "got a UnitaryLinear: pass its parameters()"),
    "variant for a rule": (lambda: UnitaryLinear(4, 4, update="D"), ValueError, "an UpdateRule, such as UpdateRule("),
    "rate for a rule": (lambda: setattr(net()[0], "update", 0.1), ValueError, "an UpdateRule, such as UpdateRule("),
    "even kernel": (lambda: OrthogonalConv2d(4, 4, 4, padding=1), ValueError, "keeps the size of the image; leave it"),
    "no padding": (lambda: OrthogonalConv2d(4, 4, 3, padding=0), ValueError, "keeps the size of the image; leave it"),
    "zeros around": (
        lambda: OrthogonalConv2d(4, 4, input_size=8, padding_mode="zeros"),
        ValueError,
        "got 'zeros'; leave it out",
    ),
    "no kernel size": (lambda: OrthogonalConv2d(4, 4), ValueError, "pass one of them"),
    "both sizes": (lambda: OrthogonalConv2d(4, 4, 3, input_size=8), ValueError, "leave them out: a local kernel fits"),
    "class for a layer": (
        lambda: UnitaryRNN(4, 4, nonlinearity=nn.GELU),
        ValueError,
        "a module (not its class) or one",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_slips_are_answered(slip):
    written, kind, words = SLIPS[slip]
    with pytest.raises(kind, match=re.escape(words)):
        written()


@pytest.mark.parametrize("train", [True, False], ids=["in a forward pass", "in a step"])
def test_a_layer_that_was_not_filled_after_to_empty(train):
    """Its memory holds what was there before, which may be anything."""
    with torch.device("meta"):
        model = net()
    model.to_empty(device="cpu")
    model[1].reset_parameters()
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        model[0].bias.zero_()
    model.train(train)
    words = r"the unitary weight 'weight' \(4, 4\) has had no values since to_empty\(\).*reset_parameters\(\)"
    model(torch.randn(2, 4)).sum().backward() if not train else None
    with pytest.warns(UserWarning, match=words):
        model[0].projunn_step() if not train else model(torch.randn(2, 4))
    assert_unitary(model)


def test_a_layer_that_was_filled_after_to_empty():
    with torch.device("meta"):
        model, other = net(), net()
    for filled in (model, other):
        filled.to_empty(device="cpu")
    for layer in model:
        layer.reset_parameters()
    other.load_state_dict(net().state_dict())
    for filled in (model, other):
        filled(torch.randn(2, 4)).sum().backward()
        filled[0].projunn_step()  # warnings are errors
        with torch.no_grad():
            filled[0].weight.fill_(0.5)
        with pytest.warns(UserWarning, match="was written by something else"):
            filled(torch.randn(2, 4))


def test_a_filler_that_gives_no_unitary_matrix():
    layer = UnitaryLinear(4, 4, init=nn.init.xavier_uniform_)
    with pytest.warns(UserWarning, match=r"was filled by init=.* that gives no unitary matrix.*unitary_layers\.init"):
        layer(torch.randn(2, 4))

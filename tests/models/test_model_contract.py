"""One contract over every registered model: it trains, its operators stay orthogonal, and nothing is lost."""

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from registered import NAMES, assert_convolutions_are_orthogonal, every_model, images, make, make_small
from safetensors.torch import load_model, save_model
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from unitary_layers import OrthogonalConv2d, OrthoResNet, StiefelConv2d, StiefelNet, UpdateRule, attach
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights
from unitary_layers.training.collected import FactoredGrad
from unitary_layers.training.owners import weights_of

STEPS = 10


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x), torch.arange(len(x)) % 5)


def test_the_family_is_registered():
    promised = "orthoresnet_projunn orthoplain100_projunn unirnn_pixel_projunn unissm_pixel_projunn"
    promised += " stiefelnet_projunn orthovit_tiny_projunn"
    assert set(promised.split()) <= set(NAMES)
    assert not set(NAMES) & set(timm.list_models(module="resnet"))


@every_model
def test_trains_stays_orthogonal_and_survives_a_file(name, tmp_path: Path):
    model, x = make(name), images(name)
    before = {weight.name: weight.matrix.clone() for weight in unitary_weights(model)}
    ordinary = [p for p in model.parameters() if p not in weights_of(model.parameters())]
    optimizer = torch.optim.RMSprop(ordinary, lr=1e-3)
    for _ in range(STEPS):
        loss_of(model, x).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        model.projunn_step()
        optimizer.step()
        optimizer.zero_grad()
    assert_unitary(model)
    assert all(not torch.equal(weight.matrix, before[weight.name]) for weight in unitary_weights(model))
    model.eval()
    assert_convolutions_are_orthogonal(model, x)
    save_model(model, str(tmp_path / "model.safetensors"))
    other = make(name).eval()
    load_model(other, str(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("name", ["orthoresnet_projunn", "unirnn_pixel_projunn"])
def test_trains_by_factored_gradients(name):
    model, x = make_small(name, gradient="factored"), images(name)
    before = float(loss_of(model, x).detach())
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        model.zero_grad()
        loss_of(model, x).backward()
        assert all(isinstance(weight.parameter.grad, FactoredGrad) for weight in unitary_weights(model))
        model.projunn_step()
        optimizer.step()
    assert_unitary(model)
    assert float(loss_of(model, x).detach()) < before


def test_factored_gradients_of_local_support_are_refused():
    with pytest.raises(ValueError, match='support="full" with gradient="factored", got support="local"'):
        timm.create_model("orthoplain100_projunn", gradient="factored")


@every_model
def test_an_unmodified_timm_loop_keeps_it_orthogonal(name):
    """AdamW with weight decay by timm's grouping, accumulation, clipping and an average of the weights."""
    model, x = make_small(name), images(name)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-2, weight_decay=0.1)
    average = ModelEmaV3(model, decay=0.5)
    attach(model, optimizer)
    for _ in range(2):
        for half in x.split(1):
            loss_of(model, half.repeat(2, 1, 1, 1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
    assert_unitary(model)
    average.module.retract_()
    assert_unitary(average.module)
    assert torch.isfinite(average.module(x)).all()


@every_model
def test_timms_weight_decay_groups_lose_no_weight(name):
    model, x = make_small(name), images(name)
    optimizer = timm.optim.create_optimizer_v2(model, "projunn", lr=1e-2, weight_decay=0.5)
    decayed = {p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    unitary = [weight.parameter for weight in unitary_weights(model)]
    assert {p for group in optimizer.param_groups for p in group["params"]} == set(model.parameters())
    assert unitary
    assert not decayed & set(unitary)
    assert {weight.name for weight in unitary_weights(model)} == model.no_weight_decay()
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}
    before = [p.detach().clone() for p in unitary]
    loss_of(model, x).backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(unitary, before, strict=True))
    assert_unitary(model)


@every_model
def test_variant_and_rule_are_keywords(name):
    for update, variant, rank in (("D", "D", "auto"), (UpdateRule(rank=2), "T", 2)):
        model = make(name, update=update, device="meta")
        assert {(w.declared.variant, w.declared.rank) for w in unitary_weights(model)} == {(variant, rank)}
    with pytest.raises(ValueError, match="variant"):
        make(name, update="X", device="meta")


@every_model
def test_copies_are_models_of_their_own(name):
    model, x = make_small(name).eval(), images(name)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))
    loss_of(twin, x).backward()
    twin.projunn_step(lr_scale=30.0)
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        assert not torch.equal(twin(x), model(x))


@every_model
def test_construction_takes_device_and_dtype(name):
    model = make(name, device="meta", dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_convolutions_are_what_the_models_are_made_of():
    for model in (make(name, device="meta") for name in NAMES):
        kinds = {type(m) for m in model.modules()}
        if isinstance(model, (OrthoResNet, StiefelNet)):
            assert kinds & {OrthogonalConv2d, StiefelConv2d}
            assert nn.Conv2d not in kinds

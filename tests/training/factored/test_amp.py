"""A GradScaler and factored gradients: a scaled loss makes the same steps, whoever takes them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from unitary_layers import ProjUNN, UnitaryLinear, UnitaryRNN, UpdateRule, attach, projunn_step
from unitary_layers.training import use_grad_scaler

N, STEPS = 8, 4
EPS = torch.finfo(torch.float32).eps
LAYERS = {
    "linear": lambda: UnitaryLinear(N, N, gradient="factored", update=UpdateRule(lr=0.1)),
    "gradient": lambda: UnitaryLinear(
        N, N, gradient="factored", update=UpdateRule(lr=0.01, rank=2, direction="gradient")
    ),
    "rnn": lambda: UnitaryRNN(N, N, nonlinearity="tanh", gradient="factored"),
}


def loss_of(layer: nn.Module, step: int) -> Tensor:
    y = layer(torch.randn(5, N, generator=torch.Generator().manual_seed(step)))
    y = y[0] if isinstance(y, tuple) else y
    return y.square().sum() + y.sum()


def trained(layer: nn.Module, trigger: str, scaler: torch.amp.GradScaler | None) -> nn.Module:
    """After some steps, between which the scaler doubles its scale."""
    if trigger == "ProjUNN":
        optimizer = ProjUNN(layer.parameters(), lr=0.05)
    else:
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    if trigger == "attach":
        attach(layer, optimizer, scaler=scaler)
    elif scaler is not None:
        use_grad_scaler(layer, scaler)
    for step in range(STEPS):
        loss = loss_of(layer, step)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if trigger == "projunn_step":
            projunn_step(layer)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
    return layer


@pytest.mark.parametrize("trigger", ["attach", "ProjUNN", "projunn_step"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_scaled_loss_makes_the_same_steps(kind, trigger):
    layer = LAYERS[kind]()
    start = copy.deepcopy(layer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=2)
    plain, scaled = trained(copy.deepcopy(layer), trigger, None), trained(layer, trigger, scaler)
    assert scaler.get_scale() == 2.0**16  # after four steps, none of them skipped
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(scaled.state_dict()[name], tensor, rtol=1000 * N * EPS, atol=1000 * N * EPS)
    weights = [name for name, _ in plain.named_parameters() if "weight" in name]
    assert not all(torch.equal(plain.get_parameter(name), start.get_parameter(name)) for name in weights)


@pytest.mark.filterwarnings("ignore:AdamW was not attached")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("named", ["attached with it", "attached", "never attached"])
def test_a_penalty_and_micro_batches_are_unscaled_with_the_rest(named, fused):
    """Whether or not the layer knows the scaler, and whether it is the scaler or a fused optimiser that unscales."""
    torch.manual_seed(0)
    start = UnitaryLinear(N, N, gradient="factored", update=UpdateRule(direction="gradient", lr=0.1, rank=N))
    after, penalty = [], torch.randn(N, N)
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**14)):
        layer = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(layer.parameters(), fused=fused)
        if named != "never attached":
            attach(layer, optimizer, scaler=scaler if named == "attached with it" else None)
        for step in range(3):  # the matrix that a penalty leaves comes last, and first
            loss = loss_of(layer, step) + ((layer.weight * penalty).sum() if step < 2 else 0)
            (loss if scaler is None else scaler.scale(loss)).backward()
        norm = layer.weight.grad.norm()
        if scaler is None:
            optimizer.step()
        else:
            norm /= scaler.get_scale()
            scaler.step(optimizer)
        after.append((layer.weight.detach(), norm))
    for plain, scaled in zip(*after, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=100 * N * EPS, atol=100 * N * EPS)


def test_the_layers_of_a_tree_know_their_scaler_and_copies_do_not():
    model = nn.Sequential(UnitaryLinear(N, N), nn.Linear(N, N), UnitaryRNN(N, N))
    scaler = torch.amp.GradScaler("cpu")
    use_grad_scaler(model, scaler)
    assert model[0].unitary_weight("weight").scaler is scaler
    assert model[2].grad_scaler is scaler
    assert copy.deepcopy(model)[0].grad_scaler is None
    use_grad_scaler(model, None)
    assert model[0].grad_scaler is None


def test_a_handle_takes_the_scaler_away_again():
    layer = LAYERS["linear"]()
    optimizer, scaler = torch.optim.SGD(layer.parameters()), torch.amp.GradScaler("cpu")
    handle = attach(layer, optimizer, scaler=scaler)
    assert layer.grad_scaler is scaler
    handle.remove()
    assert layer.grad_scaler is None


@pytest.mark.filterwarnings("ignore:SGD holds a part of the Sequential")  # it does not hold the new layer
def test_a_layer_that_was_replaced_is_told_or_refused():
    model = nn.Sequential(nn.Linear(N, N), LAYERS["linear"]())
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    attach(model, optimizer, scaler=scaler)
    model[1] = copy.deepcopy(model[1])
    before = copy.deepcopy(model.state_dict())
    scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(RuntimeError, match=r"expected the layer of '1\.weight' to know the GradScaler"):
        scaler.step(optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.zero_grad()
    model[1].zero_grad()
    use_grad_scaler(model, scaler)
    scaler.update()
    scaler.scale(loss_of(model, 0)).backward()
    scaler.step(optimizer)
    assert not torch.equal(model[1].weight, before["1.weight"])


def test_a_disabled_scaler_changes_nothing():
    layer = LAYERS["gradient"]()
    plain = trained(copy.deepcopy(layer), "attach", None)
    disabled = trained(layer, "attach", torch.amp.GradScaler("cpu", enabled=False))
    assert torch.equal(plain.weight, disabled.weight)


def test_an_overflow_is_left_out_or_refused():
    for nonfinite in ("raise", "skip"):
        layer = UnitaryLinear(N, N, gradient="factored", update=UpdateRule(nonfinite=nonfinite))
        before = layer.weight.detach().clone()
        use_grad_scaler(layer, scaler := torch.amp.GradScaler("cpu"))
        (scaler.scale(layer(torch.randn(3, N)).sum()) * torch.inf).backward()
        if nonfinite == "raise":
            with pytest.raises(RuntimeError, match="expected a finite gradient"):
                projunn_step(layer)
        else:
            projunn_step(layer)
        assert torch.equal(layer.weight, before)


def test_what_is_no_scaler_or_has_no_unitary_weight_is_refused():
    with pytest.raises(TypeError, match=r"expected a torch\.amp\.GradScaler or None, got int"):
        use_grad_scaler(UnitaryLinear(N, N), 3)
    with pytest.raises(ValueError, match="expected a module with unitary weights, got a Linear without any"):
        use_grad_scaler(nn.Linear(N, N), None)
    with pytest.raises(TypeError, match="expected a module, got"):
        use_grad_scaler(None, None)

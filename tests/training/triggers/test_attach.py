"""Three triggers, one step; and a host optimiser that never touches a unitary weight."""

import copy

import pytest
import torch
from torch import nn

from unitary_layers import UnitaryLinear, UnitaryRNN, UpdateRule, attach, projunn_step
from unitary_layers.testing import assert_unitary

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
}


def model() -> nn.Sequential:
    rule = UpdateRule(rank=2, lr=0.05, sampler="power", momentum=0.9)  # in a buffer, for every trigger
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), UnitaryLinear(6, 6, update=rule), nn.Linear(6, 1))


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return (net(x) - x.sum(1, keepdim=True)).square().mean()


def train(net: nn.Module, trigger: str, make: str, steps: int = 25) -> dict[str, torch.Tensor]:
    optimizer = OPTIMIZERS[make](net.parameters())
    if trigger == "hook":
        attach(net, optimizer)
    elif trigger == "backward":
        attach(net)
    for step in range(steps):
        loss_of(net, step).backward()
        if trigger == "call":
            projunn_step(net)
        optimizer.step()
        optimizer.zero_grad()
    return net.state_dict()


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_three_triggers_give_the_same_weights_to_the_last_bit(make):
    start = model()
    results = [train(copy.deepcopy(start), trigger, make) for trigger in ("call", "hook", "backward")]
    assert not torch.equal(results[0]["2.weight"], start[2].weight)
    for other in results[1:]:
        assert all(torch.equal(results[0][k], other[k]) for k in results[0])


def test_the_host_does_not_reach_a_unitary_weight():
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1.0, weight_decay=0.5)
    attach(net, optimizer)
    net[2].update = UpdateRule(lr=0.0)
    before = net[2].weight.detach().clone()
    for step in range(3):
        loss_of(net, step).backward()
        optimizer.step()
    torch.testing.assert_close(net[2].weight, before, rtol=0, atol=1e-6)
    assert net[2].weight not in optimizer.state
    assert any(p is net[2].weight for group in optimizer.param_groups for p in group["params"])  # it is back


def test_a_closure_that_computes_the_gradients():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, weight_decay=0.9)
    attach(net, optimizer)
    before = net[2].weight.detach().clone()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, 0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert int(net[2].weight_count) == 1
    assert not torch.equal(net[2].weight, before)
    assert_unitary(net)


def test_accumulation_and_clipping_see_the_unitary_gradients():
    nets = [model()]
    nets.append(copy.deepcopy(nets[0]))
    for net, micro in zip(nets, (1, 4), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        attach(net, optimizer)
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        for part in x.chunk(micro):
            (net(part).square().sum()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        assert int(net[2].weight_count) == 1
    torch.testing.assert_close(nets[0][2].weight, nets[1][2].weight, rtol=0, atol=1e-5)


def test_a_schedule_of_the_host_scales_the_rule():
    nets = [model()]
    nets.append(copy.deepcopy(nets[0]))
    optimizer = torch.optim.SGD(nets[0].parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    attach(nets[0], optimizer)
    other = torch.optim.SGD(nets[1].parameters(), lr=0.01)
    for step in range(4):
        for net in nets:
            loss_of(net, step).backward()
        projunn_step(nets[1], lr_scale=float(optimizer.param_groups[0]["lr"]) / 0.01)
        other.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        other.step()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        other.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_fused_optimisers_under_gradscaler():
    # GradScaler leaves unscaling and skipping to a fused optimiser, by its attributes grad_scale and found_inf
    nets = [model()]
    nets += [copy.deepcopy(nets[0]) for _ in range(2)]
    for net, scale, bad in zip(nets, (1.0, 1024.0, 1024.0), (False, False, True), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.001, fused=True)
        attach(net, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(loss_of(net, 0)).backward()
        if bad:
            net[3].bias.grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
    assert [int(net[2].weight_count) for net in nets] == [1, 1, 0]
    assert torch.equal(nets[0][2].weight, nets[1][2].weight)


def test_gradscaler_skips_and_unscales():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    attach(net, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = net[2].weight.detach().clone()
    scaler.scale(loss_of(net, 0)).backward()
    net[2].weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(net[2].weight, before)
    optimizer.zero_grad()
    scaler.scale(loss_of(net, 0)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert int(net[2].weight_count) == 1
    assert_unitary(net)


def test_a_host_step_that_raises_leaves_the_groups_whole():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    attach(net, optimizer)
    count = len(optimizer.param_groups[0]["params"])

    def closure() -> torch.Tensor:
        raise KeyError("no data")

    with pytest.raises(KeyError):
        optimizer.step(closure)
    loss_of(net, 0).backward()
    optimizer.step()
    assert len(optimizer.param_groups[0]["params"]) == count
    assert int(net[2].weight_count) == 1


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_detaching(with_optimizer):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    handle = attach(net, optimizer) if with_optimizer else attach(net)
    handle.remove()
    handle.remove()
    loss_of(net, 0).backward()
    assert int(net[2].weight_count) == 0
    if with_optimizer:
        optimizer.step()
        assert int(net[2].weight_count) == 0


def test_two_triggers_of_one_weight_are_refused():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    handle = attach(net)
    message = r"expected one trigger for the unitary weight '2.weight' \(6, 6\), got attach\(model\), which"
    with pytest.raises(ValueError, match=message):
        attach(net, optimizer)
    handle.remove()
    attach(net, optimizer)
    handle = attach(net)
    loss_of(net, 0).backward()
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    handle.remove()
    optimizer.step()
    assert any(p is net[2].weight for group in optimizer.param_groups for p in group["params"])


def test_backward_that_raised_does_not_stop_the_trigger():
    net = model()
    attach(net)

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise KeyError("broken")

    x = torch.randn(3, 4)
    with pytest.raises(KeyError):
        net[3](net[2](Broken.apply(net[1](net[0](x))))).sum().backward()
    net.zero_grad()
    loss_of(net, 0).backward()
    assert int(net[2].weight_count) == 1
    assert net[2].weight.grad is None
    assert net[0].weight.grad is not None


def test_backward_with_reentrant_checkpointing_steps_each_weight_once():
    rule = UpdateRule(direction="gradient")
    start = nn.Sequential(*(UnitaryLinear(6, 6, update=rule) for _ in range(3)))
    nets = [start, copy.deepcopy(start)]
    x = torch.randn(5, 6, requires_grad=True)
    attach(nets[0])
    h = x
    for layer in nets[0]:
        h = torch.utils.checkpoint.checkpoint(layer, h, use_reentrant=True)
    h.square().sum().backward()
    nets[1](x).square().sum().backward()
    projunn_step(nets[1])
    assert [int(layer.weight_count) for layer in nets[0]] == [1, 1, 1]
    for a, b in zip(*nets, strict=True):  # to rounding: there the weights move one by one, here as a batch
        torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=10 * 6 * torch.finfo(torch.float32).eps)


def test_what_cannot_be_attached_is_refused():
    net = model()
    with pytest.raises(ValueError, match="module with unitary weights, got a Linear without any"):
        attach(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got LBFGS"):
        attach(net, torch.optim.LBFGS(net.parameters()))
    with pytest.raises(ValueError, match="expected an optimizer with a GradScaler"):
        attach(net, scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="expected an optimizer with lr_scale"):
        attach(net, lr_scale=0.5)
    for bad in (-1.0, float("nan"), "0.1"):
        with pytest.raises(ValueError, match="expected lr_scale to be a finite number of at least 0, got"):
            attach(net, torch.optim.SGD(net.parameters(), lr=0.1), lr_scale=bad)


def test_backward_trigger_is_refused_in_a_distributed_run(tmp_path, monkeypatch):
    net = model()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="before DistributedDataParallel has summed the gradients"):
        attach(net)
    attach(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_recurrent_layers_train_by_every_trigger():
    start = UnitaryRNN(2, 5, nonlinearity="modrelu", num_layers=2, update=UpdateRule(momentum=0.9))
    results = []
    for trigger in ("call", "hook", "backward"):
        net = copy.deepcopy(start)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        if trigger != "call":
            attach(net, optimizer if trigger == "hook" else None)
        for step in range(5):
            net(torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(step)))[0].square().mean().backward()
            if trigger == "call":
                net.projunn_step()
            optimizer.step()
            optimizer.zero_grad()
        results.append(net.state_dict())
    assert all(torch.equal(results[0][k], other[k]) for other in results[1:] for k in results[0])

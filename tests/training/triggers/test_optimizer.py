"""ProjUNN, one optimiser for a whole model: against torch's own for the ordinary part, by hand for the unitary one."""

import copy
import gc
import pickle
import weakref

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from unitary_layers import ProjUNN, UnitaryLinear, UnitaryRNN, UpdateRule
from unitary_layers.linalg import nearest_unitary
from unitary_layers.projunn import DenseGradient, projunn_d, projunn_t
from unitary_layers.projunn.sampling import SAMPLERS
from unitary_layers.testing import assert_unitary
from unitary_layers.training.triggers.optimizer import DIRECTIONS


def model(variant: str = "T", dtype: torch.dtype = torch.float64, rank: int = 2, sampler: str = "lsi") -> nn.Sequential:
    rule = UpdateRule(variant, rank, sampler)
    return nn.Sequential(
        nn.Linear(4, 6, dtype=dtype),
        nn.Tanh(),
        UnitaryLinear(6, 6, dtype=dtype, update=rule),
        nn.Linear(6, 1, dtype=dtype),
    )


def loss_of(net: nn.Module, step: int) -> Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).to(net[0].weight.dtype)
    return (net(x) - x.sum(1, keepdim=True)).abs().square().mean()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(p, q) for p, q in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


BASES = {
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("base", BASES)
def test_ordinary_parameters_move_as_under_torch(base):
    net = model()
    twin = copy.deepcopy(net)
    twin[2].weight.requires_grad_(False)
    ours, theirs = (
        ProjUNN(net.parameters(), 0.01, unitary_lr_scale=0, direction="gradient", base=base, weight_decay=0.1),
        BASES[base](twin.parameters()),
    )
    for step in range(5):
        for n, o in ((net, ours), (twin, theirs)):
            train(n, o, range(step, step + 1))
    assert all(torch.equal(net[i].weight, twin[i].weight) and torch.equal(net[i].bias, twin[i].bias) for i in (0, 3))
    torch.testing.assert_close(net[2].weight, twin[2].weight)  # a rate of 0, and no weight decay


class Slow:
    """The slow twin of the unitary part: dense directions by the textbook, the rotation by its own tested function."""

    def __init__(self, layer: UnitaryLinear, direction: str, lr: float) -> None:
        self.layer, self.direction, self.lr, self.count = layer, direction, lr, 0
        self.weight = layer.matrix.detach().clone()
        self.square = torch.zeros_like(self.weight.abs())

    def step(self, g: Tensor) -> None:
        if self.direction == "rmsprop":
            self.square = 0.99 * self.square + 0.01 * (g.real**2 + g.imag**2 if g.is_complex() else g**2)
            g = g / (self.square.sqrt() + 1e-8)
        rule = self.layer.update
        streams = rule.streams([(0, self.count)], g.device)
        a, b = SAMPLERS[rule.sampler](DenseGradient(g), rule.rank, streams, None)
        self.weight = {"D": projunn_d, "T": projunn_t}[rule.variant](self.weight, -self.lr * a, b)
        self.count += 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("variant", ["D", "T"])
@pytest.mark.parametrize("direction", [d for d in DIRECTIONS if d not in (None, "spectral")])
def test_unitary_weights_move_as_the_textbook_says(dtype, variant, direction):
    net = model(variant, dtype)
    if dtype.is_complex:
        net = nn.Sequential(nn.Linear(4, 6, dtype=dtype), nn.Identity(), net[2], nn.Identity())
    optimizer = ProjUNN(net.parameters(), 0.02, unitary_lr_scale=0.5, direction=direction, momentum=0.9)
    slow = Slow(net[2], direction, 0.02 * 0.5)
    for step in range(6):
        optimizer.zero_grad()
        loss_of(net, step).backward()
        g = net[2].weight.grad.clone()
        slow.step(torch.view_as_complex(g) if dtype.is_complex else g)
        optimizer.step()
        assert net[2].weight.grad is None
        torch.testing.assert_close(net[2].matrix, slow.weight, rtol=0, atol=1e4 * torch.finfo(dtype).eps)
    assert_unitary(net)


def test_training_lowers_the_loss_by_every_direction():
    for direction in DIRECTIONS:
        net = model(dtype=torch.float32)
        optimizer = ProjUNN(net.parameters(), 0.01, unitary_lr_scale=0.3, direction=direction, momentum=0.5)
        before = float(loss_of(net, 999).detach())
        train(net, optimizer, range(150))
        assert float(loss_of(net, 999).detach()) < 0.3 * before
        assert_unitary(net)


@pytest.mark.parametrize("sampler", ["lsi", "power"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_resumed_run_continues_bit_for_bit(direction, sampler):
    def start() -> tuple[nn.Module, ProjUNN, torch.optim.lr_scheduler.LRScheduler]:
        net = model(sampler=sampler)
        optimizer = ProjUNN(net.parameters(), 0.01, direction=direction, momentum=0.5)
        return net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)

    def run(parts: tuple, steps: range) -> None:
        for step in steps:
            train(*parts[:2], range(step, step + 1))
            parts[2].step()

    whole = start()
    states = [copy.deepcopy(whole[0].state_dict())]
    run(whole, range(10))
    first = start()
    first[0].load_state_dict(states[0])
    run(first, range(5))
    saved = pickle.loads(pickle.dumps([part.state_dict() for part in first]))
    second = start()
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    run(second, range(5, 10))
    assert equal(whole[0], second[0])


def test_a_state_of_a_direction_that_is_gone_is_refused():
    """Of an older release, which had two more."""
    optimizer = ProjUNN(UnitaryLinear(3, 3).parameters())
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["direction"] = "momentum"
    with pytest.raises(ValueError, match=r"expected direction to be one of .*'rmsprop'\), got 'momentum'"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["direction"] is None


def test_schedulers_and_groups_set_both_rates():
    net = model()
    groups = [{"params": net[2].parameters(), "lr": 0.1, "unitary_lr_scale": 0.2}, {"params": net[0].parameters()}]
    optimizer = ProjUNN(groups, lr=0.01, direction="gradient")
    optimizer.add_param_group({"params": net[3].parameters(), "lr": 1.0})
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    scheduler_steps = 2
    for step in range(scheduler_steps):
        train(net, optimizer, range(step, step + 1))
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.0025, 0.25]
    twin = copy.deepcopy(net)
    for n in (net, twin):
        n.zero_grad()
        loss_of(n, 7).backward()
    twin.get_submodule("2").update = UpdateRule(rank=2, lr=0.025 * 0.2, direction="gradient")
    twin[2].projunn_step()
    optimizer.step()
    assert torch.equal(net[2].weight, twin[2].weight)
    assert all(group["alpha"] == 0.99 and "centered" in group for group in optimizer.param_groups)


def test_a_schedule_shortens_spectral_steps_relative_to_the_rate_of_the_group():
    net = model()
    net[2].update = UpdateRule(rank=2, lr=0.4, momentum=0.0)
    optimizer = ProjUNN([{"params": net[2].parameters(), "lr": 3.0}, {"params": net[0].parameters()}], lr=0.01)
    for factor in (1.0, 0.5, 0.1):
        for group in optimizer.param_groups:
            group["lr"] = group["reference_lr"] * factor
        twin = copy.deepcopy(net)
        for n in (net, twin):
            n.zero_grad()
            loss_of(n, 7).backward()
        twin[2].projunn_step(lr_scale=factor)
        optimizer.step()
        assert torch.equal(net[2].weight, twin[2].weight)
    resumed = ProjUNN([{"params": net[2].parameters(), "lr": 5.0}, {"params": net[0].parameters()}], lr=0.2)
    resumed.load_state_dict(optimizer.state_dict())
    assert [group["reference_lr"] for group in resumed.param_groups] == [3.0, 0.01]


def test_all_parameters_in_all_groups_are_stepped():
    net = model()
    optimizer = ProjUNN([{"params": [p]} for p in net.parameters()], lr=0.01)
    before = [p.detach().clone() for p in net.parameters()]
    train(net, optimizer, range(1))
    unitary_bias_too = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
    assert all(unitary_bias_too)


def test_closure_maximize_and_no_gradients():
    net = model()
    optimizer = ProjUNN(net.parameters(), lr=1e-3, maximize=True, direction="gradient", unitary_lr_scale=1.0)
    before = copy.deepcopy(net)
    optimizer.step()
    assert equal(net, before)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, 0)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(10)]
    assert losses == sorted(losses)
    assert losses[-1] > losses[0]


def test_mixed_dtypes_in_one_group():
    rule = UpdateRule(rank=2)
    layers = [UnitaryLinear(4, 4, dtype=t, update=rule) for t in (torch.float32, torch.float64, torch.complex64)]
    optimizer = ProjUNN([p for layer in layers for p in layer.parameters()], lr=0.1)
    for _ in range(20):
        for layer in layers:
            layer(torch.randn(3, 4, dtype=layer.matrix.dtype)).abs().square().sum().backward()
            (layer.matrix.real.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for layer in layers:
        assert_unitary(layer)
        assert int(layer.weight_count) == 20


def test_a_bad_gradient_stops_the_whole_step():
    net = model()
    optimizer = ProjUNN(net.parameters(), lr=0.1)
    train(net, optimizer, range(2))
    before, state = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
    loss_of(net, 2).backward()
    net[2].weight.grad[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match=r"finite gradient of the unitary weight 'UnitaryLinear.weight'"):
        optimizer.step()
    assert equal(net, before)
    for p, q in zip(optimizer.state_dict()["state"].values(), state["state"].values(), strict=True):
        assert all(torch.equal(p[k], q[k]) for k in q)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "assign", "meta", "to_empty"])
def test_a_unitary_weight_is_known_wherever_it_comes_from(how):
    source = model()
    before = source[2].weight.detach().clone()
    net = {
        "deepcopy": lambda: copy.deepcopy(source),
        "pickle": lambda: pickle.loads(pickle.dumps(source)),
        "assign": model,
        "meta": lambda: model().to("meta"),
        "to_empty": lambda: model().to("meta").to_empty(device="cpu"),
    }[how]()
    if how != "deepcopy":
        net.load_state_dict(source.state_dict(), assign=how != "to_empty")
    optimizer = ProjUNN(net.parameters(), lr=0.1, weight_decay=0.5)
    train(net, optimizer, range(5))
    assert_unitary(net)
    assert not torch.equal(net[2].weight, before)
    assert int(net[2].weight_count) == 5


def test_a_refused_group_is_not_added():
    optimizer = ProjUNN(nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match="expected direction to be one of"):
        optimizer.add_param_group({"params": nn.Linear(2, 2).parameters(), "direction": "bogus"})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": nn.Linear(2, 2).parameters(), "lr": 1})
    assert isinstance(optimizer.param_groups[1]["lr"], float)


def test_a_compiled_step_is_the_same():
    nets = [model()]
    nets.append(copy.deepcopy(nets[0]))
    optimizers = [ProjUNN(net.parameters(), lr=0.1) for net in nets]
    steps = [optimizers[0].step, torch.compile(lambda: optimizers[1].step(), backend="eager")]
    for number in range(3):
        for net, optimizer, step in zip(nets, optimizers, steps, strict=True):
            loss_of(net, number).backward()
            step()
            optimizer.zero_grad()
    assert equal(*nets)


def test_what_becomes_of_a_layer_later_is_seen():
    net = model()
    optimizer = ProjUNN(net.parameters(), lr=0.1, direction="rmsprop")  # along a direction of full rank
    for step, rank in enumerate((2, 3, 1)):
        net[2].update = UpdateRule(rank=rank)
        net[2].weight_count = net[2].weight_count.clone()  # as when it goes to another device
        before = net[2].matrix.detach().clone()
        train(net, optimizer, range(step, step + 1))
        assert torch.linalg.matrix_rank(net[2].matrix.detach() - before, atol=1e-12) == 2 * rank
        assert int(net[2].weight_count) == step + 1


def test_layers_that_come_and_go():
    net = model()
    optimizer = ProjUNN(net.parameters(), lr=0.1)
    optimizer.zero_grad()
    new = UnitaryLinear(6, 6, dtype=torch.float64)
    new.weight, net[2] = net[2].weight, new
    train(net, optimizer, range(1))
    assert int(new.weight_count) == 1
    other = UnitaryLinear(6, 6, bias=False)
    optimizer.param_groups[0]["params"].extend(other.parameters())
    other(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    assert int(other.weight_count) == 1
    spare = UnitaryLinear(6, 6, dtype=torch.float64)
    train(net, optimizer, range(1, 2))
    spare.weight, net[2] = net[2].weight, spare  # from a layer that goes to one that was there at the last step
    del new
    train(net, optimizer, range(2, 3))
    assert int(spare.weight_count) == 1
    optimizer.param_groups = [{**optimizer.param_groups[0], "params": list(net[2].parameters())}]
    before = net[0].weight.clone()
    train(net, optimizer, range(3, 4))
    assert torch.equal(net[0].weight, before)
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("base", BASES)
def test_a_weight_whose_layer_has_gone_is_an_ordinary_parameter(base, direction):
    net = nn.Sequential(UnitaryLinear(6, 6, bias=False), nn.Linear(6, 1))
    optimizer = ProjUNN(net.parameters(), lr=0.1, base=base, direction=direction, momentum=0.5)
    net(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    plain = nn.Linear(6, 6, bias=False)
    plain.weight, net[0] = net[0].weight, plain
    gc.collect()
    before = plain.weight.detach().clone()
    for _ in range(2):
        net(torch.ones(2, 6)).sum().backward()
        optimizer.step()
    assert not torch.equal(plain.weight, before)


def test_an_optimiser_can_be_copied_and_pickled():
    for clone in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        net = model()
        optimizer = ProjUNN(net.parameters(), lr=0.1)
        train(net, optimizer, range(2))
        twin, other = clone((net, optimizer))
        for n, o in ((net, optimizer), (twin, other)):
            train(n, o, range(2, 4))
        assert equal(net, twin)


def test_a_shallow_copy_of_an_optimiser_steps_the_same_model():
    net = model()
    twin = copy.deepcopy(net)
    optimizers = [ProjUNN(n.parameters(), lr=0.1) for n in (net, twin)]
    for n, o in zip((net, twin), optimizers, strict=True):
        train(n, o, range(2))
    train(net, copy.copy(optimizers[0]), range(2, 4))
    train(twin, optimizers[1], range(2, 4))
    assert equal(net, twin)


@pytest.mark.parametrize("clip", [False, True])
def test_a_scaled_loss_makes_the_same_steps(clip):
    start = model(dtype=torch.float32)
    nets = [start, copy.deepcopy(start)]
    for net, enabled in zip(nets, (True, False), strict=True):
        optimizer, scaler = ProjUNN(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu", 1024.0, enabled=enabled)
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(net, step)).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1 if clip else torch.inf)
            scaler.step(optimizer)
            scaler.update()
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b)
    assert_unitary(nets[0])


def test_timm_makes_it_by_name_and_its_groups_are_understood():
    net = nn.ModuleDict({"rnn": UnitaryRNN(3, 8, nonlinearity="relu"), "head": nn.Linear(8, 2)})
    optimizer = timm.optim.create_optimizer_v2(net, "projunn", lr=0.05, weight_decay=0.5)
    assert isinstance(optimizer, ProjUNN)
    assert sorted({group["weight_decay"] for group in optimizer.param_groups}) == [0.0, 0.5]
    for _ in range(20):
        optimizer.zero_grad()
        net["head"](net["rnn"](torch.randn(5, 4, 3))[1]).square().mean().backward()
        optimizer.step()
    assert_unitary(net)
    assert int(net["rnn"].weight_hh_l0_count) == 20


def test_no_name_of_timm_is_taken():
    names = timm.optim.list_optimizers()
    assert names.count("projunn") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr >= 0 and finite, got -1.0"),
        ({"unitary_lr_scale": -1.0}, "unitary_lr_scale >= 0"),
        ({"direction": "newton"}, r"direction to be one of .*'rmsprop'.*, got 'newton'"),
        ({"direction": "moments"}, r"direction to be one of .*'rmsprop'.*, got 'moments'"),
        ({"momentum": 1.0}, r"momentum in \[0, 1\), got 1.0"),
        ({"alpha": -0.1}, r"alpha in \[0, 1\)"),
        ({"eps": -1e-8}, "eps >= 0"),
        ({"weight_decay": -1}, "weight_decay >= 0"),
        ({"base": "lion"}, r"base to be one of .*, got 'lion'"),
        ({"lr": float("nan")}, "lr >= 0 and finite, got nan"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ProjUNN(nn.Linear(2, 2).parameters(), **options)


def test_a_matrix_off_the_manifold_is_noticed_and_brought_back():
    net = model()
    with torch.no_grad():
        net[2].weight.add_(0.01)
    before = nearest_unitary(net[2].weight.detach())
    with pytest.warns(UserWarning, match="was written by something else"):
        train(net, ProjUNN(net.parameters(), lr=0.0), range(1))
    torch.testing.assert_close(net[2].weight.detach(), before)


@pytest.mark.parametrize("direction", ["spectral", "gradient", "rmsprop"])
@pytest.mark.parametrize("of_layer", ["spectral", "gradient"])
def test_the_power_sampler_goes_on_at_the_rank_of_the_layer_in_any_direction(of_layer, direction):
    torch.manual_seed(0)
    layer = UnitaryLinear(32, 32, bias=False, update=UpdateRule(sampler="power", direction=of_layer))
    optimizer = ProjUNN(layer.parameters(), direction=direction)
    for _ in range(2):
        layer(torch.randn(64, 32)).pow(3).mean().backward()
        optimizer.step()
    factor = layer.weight_previous
    assert torch.linalg.matrix_rank(factor) == factor.size(1) == layer.update.rank_of(32)


def test_a_spectral_direction_of_the_optimiser_has_the_length_that_suits_the_layer():
    changes = []
    for direction in ("spectral", "gradient"):
        torch.manual_seed(0)
        rnn = UnitaryRNN(4, 8, update=UpdateRule(rank=8, direction=direction))
        before = rnn.weight_hh_l0.detach().clone()
        rnn(torch.randn(25, 2, 4))[0].square().sum().backward()
        ProjUNN(rnn.parameters(), direction="spectral").step()
        changes.append((rnn.weight_hh_l0 - before).detach())
    torch.testing.assert_close(*changes)
    assert 0.04 < float(changes[0].norm()) < 0.06

"""The momentum of the spectral direction: its slow twin, and in whose state it lives."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from unitary_layers import ProjUNN, StiefelConv2d, UnitaryLinear, UpdateRule, attach, haar_unitary, projunn_step
from unitary_layers.projunn import DenseGradient
from unitary_layers.projunn.slope import factor_of
from unitary_layers.testing import assert_unitary
from unitary_layers.training.memory import KEPT, KEYS, SAMPLED, apart

N = 8


def layer(dtype: torch.dtype = torch.float64, **rule: object) -> UnitaryLinear:
    torch.manual_seed(3)
    options = {"rank": 2, "sampler": "svd", "lr": 0.3} | rule
    return UnitaryLinear(N, N, bias=False, dtype=dtype, update=UpdateRule(**options))


def loss_of(module: nn.Module, x: Tensor) -> Tensor:
    return (module(x) - x.flip(-1)).abs().square().mean()


def inputs(steps: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    return [torch.randn(6, N, dtype=dtype, generator=g) for _ in range(steps)]


def slow_twin(w: Tensor, xs: list[Tensor], rank: int, length: float, mu: float) -> Tensor:
    """Momentum with error feedback, the best sample of rank k of the tangent part, and the slope test, all formed."""
    m, course = torch.zeros_like(w), torch.zeros_like(w)
    count = mean = square = log_factor = 0.0
    for x in xs:
        leaf = w.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((x @ leaf.mT - x.flip(-1)).abs().square().mean(), leaf)
        slope = float((gradient.conj() * course).sum().real)
        count, mean, square = count + 1, 0.95 * mean + 0.05 * slope, 0.95 * square + 0.05 * slope**2
        trend = mean / math.sqrt(square * (1 - 0.95**count)) if square else 0.0
        log_factor = min(0.0, log_factor - 0.04 * (trend * abs(trend) - 0.3))
        m = (1 - rank / (8 * len(w))) * m + gradient
        s = (w.mH @ m - m.mH @ w) / 2
        u, sigma, vh = torch.linalg.svd(w @ s)
        sample = (u[:, :rank] * sigma[:rank]) @ vh[:rank]
        m = m - (1 - mu) * sample
        z = (w.mH @ sample - sample.mH @ w) / 2
        u, sigma, vh = torch.linalg.svd(z)
        turning = int((sigma > 1e-10 * sigma[0]).sum())
        j = u[:, :turning] @ vh[:turning]
        w = w @ torch.linalg.matrix_exp(-length * math.exp(log_factor) / math.sqrt(turning) * j)
        course = -w @ j
    return w


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("mu", [0.5, 0.95])
def test_it_is_its_slow_twin(mu, dtype):
    net, xs = layer(dtype, momentum=mu), inputs(5, dtype)
    expected = slow_twin(net.matrix.detach().clone(), xs, 2, 0.3, mu)
    for x in xs:
        loss_of(net, x).backward()
        net.projunn_step()
    torch.testing.assert_close(net.matrix.detach(), expected, rtol=0, atol=1e-9)


def factored_twins(n: int, dtype: torch.dtype, **rule: object) -> tuple[UnitaryLinear, UnitaryLinear]:
    torch.manual_seed(3)
    options = {"bias": False, "dtype": dtype, "update": UpdateRule(lr=0.3, momentum=0.8, **rule)}
    dense, factored = UnitaryLinear(n, n, **options), UnitaryLinear(n, n, gradient="factored", **options)
    with torch.no_grad():
        factored.weight.copy_(dense.weight)
    return dense, factored


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("sampler", ["lsi", "power"])
def test_a_thin_momentum_of_full_rank_is_the_whole_one(sampler, dtype):
    dense, factored = factored_twins(N, dtype, rank=N // 2, sampler=sampler)
    for x in inputs(5, dtype):
        for net in (dense, factored):
            for part in x.split(2):  # backward passes add up
                loss_of(net, part).backward()
            net.projunn_step()
    torch.testing.assert_close(factored.weight, dense.weight, rtol=0, atol=1e-10)
    torch.testing.assert_close(factored.weight_slope, dense.weight_slope, rtol=0, atol=1e-10)


def best(matrix: Tensor, rank: int) -> Tensor:
    u, sigma, vh = torch.linalg.svd(matrix)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_thin_momentum_is_its_slow_twin(dtype):
    """A momentum that is a matrix, and cut to its best approximation of rank KEPT k after each step."""
    n, k = 24, 2
    _, net = factored_twins(n, dtype, rank=k)
    g, m, rule = torch.Generator().manual_seed(5), torch.zeros(n, n, dtype=dtype), net.update
    for _ in range(5):
        x = torch.randn(SAMPLED * k, n, dtype=dtype, generator=g)  # of its gradient backward keeps all
        weight, w = net.unitary_weight("weight"), net.matrix.detach().clone()
        leaf = w.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((x @ leaf.mT - x.flip(-1)).abs().square().mean(), leaf)
        m = (1 - k / (8 * n)) * m + gradient
        sample = rule.sample(DenseGradient(m), [weight.key], w)
        loss_of(net, x).backward()
        net.projunn_step()
        slope = net.weight_slope.double()
        turn = rule.turn(w, sample, factor_of(slope))
        torch.testing.assert_close(net.matrix.detach(), w + turn.change.matrix(), rtol=0, atol=1e-10)
        m = best(m - 0.2 * turn.used.matrix(), KEPT * k)
        stored = torch.view_as_complex(net.weight_momentum) if dtype.is_complex else net.weight_momentum
        assert stored.shape == (KEPT * k, 2 * n)
        torch.testing.assert_close(apart(stored, w.shape).matrix(), m, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_gradient_of_the_other_kind_is_added_all_the_same(dtype):
    """A factored weight may get a .grad, and one with a momentum that is a matrix a factored gradient."""
    x = inputs(1, dtype)[0]
    dense, factored = factored_twins(N, dtype, rank=N // 2)
    for net in (dense, factored):
        loss_of(net, x).backward()
        net.projunn_step()
    loss_of(dense, x).backward()
    stored = dense.weight.grad.clone()
    dense.projunn_step()
    factored.weight.grad = stored
    factored.projunn_step()
    torch.testing.assert_close(factored.weight, dense.weight, rtol=0, atol=1e-10)
    twin = copy.deepcopy(dense)
    factored.weight = dense.weight  # tied: only the factored layer is used
    for net in (factored, twin):
        loss_of(net, x).backward()
    for net in (dense, twin):
        net.projunn_step()
    torch.testing.assert_close(twin.weight, dense.weight, rtol=0, atol=1e-10)
    torch.testing.assert_close(twin.weight_momentum, dense.weight_momentum, rtol=0, atol=1e-10)


def test_every_trigger_with_a_memory_takes_the_same_steps():
    def by_attach(net: nn.Module):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        attach(net, optimizer)
        return optimizer.step

    def by_optimizer(net: nn.Module):
        return ProjUNN(net.parameters(), lr=0.1).step

    def by_hand(net: nn.Module):
        net.update = UpdateRule(rank=2, sampler="svd", lr=0.3, momentum=0.9)
        return net.projunn_step

    def alone(net: nn.Module):
        net.update = UpdateRule(rank=2, sampler="svd", lr=0.3, momentum=0.9)
        attach(net)
        return lambda: None

    weights = []
    for trigger in (by_attach, by_optimizer, by_hand, alone):
        net = layer()
        step = trigger(net)
        for x in inputs(4):
            loss_of(net, x).backward()
            step()
        weights.append(net.weight.detach())
    assert all(torch.equal(weight, weights[0]) for weight in weights)


def test_a_bare_trigger_remembers_nothing_unless_it_is_told_to():
    one, other = layer(), layer()
    xs = inputs(3)
    for x in xs:
        loss_of(one, x).backward()
        projunn_step(one)
    with torch.no_grad():
        other.weight.copy_(one.weight)
    other.weight_count.copy_(one.weight_count)
    for net in (one, other):  # what has gone before leaves no trace
        loss_of(net, xs[0]).backward()
        projunn_step(net)
    assert torch.equal(one.weight, other.weight)
    assert set(one.state_dict()) == {"weight", "weight_count"}
    assert set(layer(momentum=0.9).state_dict()) == {
        "weight",
        "weight_count",
        "weight_momentum",
        "weight_slope",
        "weight_course",
    }
    assert set(layer(momentum=0.0).state_dict()) == {"weight", "weight_count"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("kind", ["attach", "ProjUNN"])
def test_with_an_optimiser_it_is_part_of_its_state_and_the_run_goes_on_bit_for_bit(kind, dtype):
    def start(net: nn.Module) -> torch.optim.Optimizer:
        if kind == "ProjUNN":
            return ProjUNN(net.parameters(), lr=0.1)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        attach(net, optimizer)
        return optimizer

    def run(net: nn.Module, optimizer: torch.optim.Optimizer, xs: list[Tensor]) -> None:
        for x in xs:
            loss_of(net, x).backward()
            optimizer.step()
            optimizer.zero_grad()

    xs, net = inputs(6, dtype), layer(dtype, sampler="lsi")
    optimizer = start(net)
    run(net, optimizer, xs[:3])
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    assert saved[0].keys() == {"weight", "weight_count"}
    assert saved[1]["state"][0][KEYS[0]].shape == net.weight.shape
    run(net, optimizer, xs[3:])
    resumed = layer(dtype, sampler="lsi")
    other = start(resumed)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(copy.deepcopy(saved[1]))  # torch takes the tensors themselves
    run(resumed, other, xs[3:])
    assert torch.equal(resumed.weight, net.weight)
    late = layer(dtype, sampler="lsi")  # attached after loading
    late.load_state_dict(saved[0])
    other = ProjUNN(late.parameters(), lr=0.1) if kind == "ProjUNN" else torch.optim.AdamW(late.parameters(), lr=0.1)
    other.load_state_dict(copy.deepcopy(saved[1]))  # torch takes the tensors themselves
    if kind == "attach":
        attach(late, other)
    run(late, other, xs[3:])
    assert torch.equal(late.weight, net.weight)
    forgetful = layer(dtype, sampler="lsi")
    forgetful.load_state_dict(saved[0])
    run(forgetful, start(forgetful), xs[3:])
    assert not torch.equal(forgetful.weight, net.weight), "the momentum matters"


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("kept", ["optimiser", "layer"])
def test_a_kernel_as_large_as_the_image_keeps_what_a_matrix_keeps(kept, dtype):
    rule = UpdateRule(rank=2, lr=0.3, momentum=None if kept == "optimiser" else 0.9)
    matrix = UnitaryLinear(12, 5, bias=False, dtype=dtype, update=rule)
    kernel = StiefelConv2d(2, 5, (3, 2), bias=False, dtype=dtype, update=rule)
    with torch.no_grad():
        kernel.weight.copy_(matrix.weight.view_as(kernel.weight))
    for net, shape in ((matrix, (6, 12)), (kernel, (6, 2, 3, 2))):
        optimizer, generator = torch.optim.SGD(net.parameters(), lr=0.1), torch.Generator().manual_seed(5)
        attach(net, optimizer)
        for _ in range(3):
            x = torch.randn(6, 12, dtype=dtype, generator=generator)
            (net(x.view(shape)).flatten(1) - x[:, :5]).abs().square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(kernel.weight, matrix.weight.view_as(kernel.weight), rtol=0, atol=1e-12)


def test_a_host_that_is_let_go_finds_its_own_state():
    net = nn.Sequential(layer(torch.float32), nn.Linear(N, N))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    handle = attach(net, optimizer)
    x = inputs(1, torch.float32)[0]
    loss_of(net, x).backward()
    optimizer.step()
    assert KEYS[0] in optimizer.state_dict()["state"][0]
    copy.deepcopy(optimizer)  # AdamW takes what is there for the state of a step of its own
    handle.remove()
    assert KEYS[0] not in optimizer.state_dict()["state"].get(0, {})
    loss_of(net, x).backward()
    optimizer.step()


def test_refused_gradients_leave_the_momentum_alone():
    net = layer(torch.float32, momentum=0.9)
    x = inputs(1, torch.float32)[0]
    loss_of(net, x).backward()
    net.projunn_step()
    before = net.weight_momentum.clone()
    assert before.abs().sum() > 0
    net.weight.grad = torch.full_like(net.weight, math.nan)
    with pytest.raises(RuntimeError, match="finite gradient"):
        net.projunn_step()
    net.update = UpdateRule(rank=2, sampler="svd", lr=0.3, momentum=0.9, nonfinite="skip")
    net.projunn_step()
    assert torch.equal(net.weight_momentum, before)


def test_small_weights_of_one_shape_keep_their_own():
    def net() -> nn.Sequential:
        torch.manual_seed(0)
        rule = UpdateRule(rank=2, lr=0.3, momentum=0.9)
        return nn.Sequential(*(UnitaryLinear(N, N, dtype=torch.float64, update=rule) for _ in range(3)))

    together, alone = net(), net()
    alone[1].update = UpdateRule(
        rank=2, lr=0.3, momentum=0.9, nonfinite="skip"
    )  # a rule of its own: no batch with others
    for x in inputs(4):
        for module in (together, alone):
            loss_of(module, x).backward()
            projunn_step(module)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=1e-11)
        torch.testing.assert_close(one.weight_momentum, other.weight_momentum, rtol=0, atol=1e-11)


def test_memory_and_scale():
    def after(scale: float) -> Tensor:
        torch.manual_seed(0)
        net = UnitaryLinear(N, N, update=UpdateRule(rank=2, momentum=0.9))
        with torch.no_grad():
            net.weight.copy_(haar_unitary(N, generator=torch.Generator().manual_seed(1)))
        for x in inputs(4, torch.float32):
            (scale * loss_of(net, x)).backward()
            net.projunn_step()
        return net.weight.detach()

    for scale in (1e-6, 2.0**-40, 65536.0, 1e6):
        torch.testing.assert_close(after(scale), after(1.0), rtol=0, atol=1e4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("kind", ["attach", "ProjUNN"])
def test_distributed_state_dicts_of_torch_know_it(kind):
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(N, N), UnitaryLinear(N, N))
        optimizer = (torch.optim.AdamW if kind == "attach" else ProjUNN)(net.parameters(), lr=0.01)
        if kind == "attach":
            attach(net, optimizer)
        return net, optimizer

    def run(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for x in inputs(3, torch.float32):
            loss_of(net, x).backward()
            optimizer.step()
            optimizer.zero_grad()

    net, optimizer = make()
    run(net, optimizer)
    model_state, state = copy.deepcopy(get_state_dict(net, optimizer))
    assert set(KEYS) <= set(state["state"]["1.weight"])
    run(net, optimizer)
    other, resumed = make()
    set_state_dict(other, resumed, model_state_dict=model_state, optim_state_dict=state)
    run(other, resumed)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["attach", "ProjUNN"])
def test_it_follows_the_weight_to_another_precision(kind):
    net = nn.Sequential(*(UnitaryLinear(N, N, bias=False) for _ in range(2)))
    optimizer = (torch.optim.AdamW if kind == "attach" else ProjUNN)(net.parameters(), lr=0.01)
    if kind == "attach":
        attach(net, optimizer)
    for dtype in (torch.float32, torch.float64):
        net.to(dtype)
        for x in inputs(2, dtype):
            optimizer.zero_grad()
            loss_of(net, x).backward()
            optimizer.step()
    own = optimizer.state_dict()["state"][0]
    assert all(own[key].dtype == torch.float64 for key in KEYS)
    assert float(own[KEYS[1]][0]) == 4, "the steps before the cast count"


@pytest.mark.parametrize("name", ["AdamW", "ASGD", "NAdam", "RAdam", "Rprop", "SGD"])
def test_any_optimiser_loads_it_before_it_is_attached(name):
    net = nn.Sequential(UnitaryLinear(N, N), nn.Linear(N, N))
    first, second = (getattr(torch.optim, name)(net.parameters(), lr=0.01) for _ in range(2))
    attach(net, first)
    loss_of(net, inputs(1, torch.float32)[0]).backward()
    first.step()
    saved = first.state_dict()
    second.load_state_dict(copy.deepcopy(saved))
    copy.deepcopy(second)
    attach(net, second)
    assert torch.equal(second.state_dict()["state"][0][KEYS[0]], saved["state"][0][KEYS[0]])


def test_a_state_dict_that_is_refused_leaves_it_alone():
    net = nn.Sequential(UnitaryLinear(N, N), nn.Linear(N, N))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    attach(net, optimizer)
    loss_of(net, inputs(1, torch.float32)[0]).backward()
    optimizer.step()
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    assert KEYS[0] in optimizer.state_dict()["state"][0]


def test_a_rate_of_zero_teaches_the_slope_test_nothing():
    net = layer(momentum=0.9)
    for scale in (1.0, 0.0, 0.0, 0.0):
        loss_of(net, inputs(1)[0]).backward()
        net.projunn_step(lr_scale=scale)
    assert int(net.weight_count) == 4
    assert float(net.weight_slope[0]) == 1


def test_a_slope_beyond_its_precision_leaves_weight_and_test_alone():
    n = 16
    net = UnitaryLinear(n, n, bias=False, init="identity", update=UpdateRule(rank=n, momentum=0.9))
    turn = torch.tensor([[0.0, 5e37], [-5e37, 0.0]])
    for sign in (1, -1):  # what is left of both is not large
        net.weight.grad = sign * net.weight.detach() @ torch.block_diag(*[turn] * (n // 2))
        net.projunn_step()
    assert_unitary(net)
    assert torch.isfinite(net.weight_slope).all()


def test_a_length_beyond_its_precision_is_a_turn_as_any_other():
    net = layer(momentum=0.9, lr=1.7e308)
    loss_of(net, inputs(1)[0]).backward()
    net.weight_slope[3] = 2.0
    net.projunn_step()
    assert_unitary(net)

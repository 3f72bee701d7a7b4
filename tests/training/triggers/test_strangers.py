"""A training script that knows nothing of unitary weights trains them all the same, and is told of it once."""

import copy
import pickle
import re
import warnings
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from unitary_layers import ProjUNN, UnitaryLinear, UpdateRule, attach, projunn_step
from unitary_layers.testing import assert_unitary

N = 6
X = torch.randn(5, N, generator=torch.Generator().manual_seed(0))
MESSAGE = (
    r"AdamW was not attached, .* the unitary weight 'UnitaryLinear.weight' \(6, 6\) and 1 more .* It is attached now"
)


def model(gradient: str = "dense", lr: float = 0.1) -> nn.Sequential:
    first, second = (UnitaryLinear(N, N, gradient=gradient, update=UpdateRule(rank=2, lr=lr)) for _ in range(2))
    return nn.Sequential(first, nn.Linear(N, N), nn.Tanh(), second)


def loss_of(net: nn.Module) -> Tensor:
    return (net(X) - 1).square().mean()


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5)


def plain(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss_of(net).backward()
    optimizer.step()
    optimizer.zero_grad()


def closing(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    optimizer.step(closure)


def scaling(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(net)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


Loop = Callable[[nn.Module, torch.optim.Optimizer], None]


def messages(net: nn.Module, optimizer: torch.optim.Optimizer, loop: Loop = plain, steps: int = 4) -> list[str]:
    """What a training of some steps warns of, under a schedule."""
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(steps):
            loop(net, optimizer)
            schedule.step()
    adopted = [warning for warning in found if "was not attached" in str(warning.message)]
    assert all(warning.filename == __file__ for warning in adopted)  # where the script steps
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize("loop", [plain, closing, scaling])
def test_it_trains_as_if_it_were_attached_and_says_so_once(loop):
    start = model()
    nets = [start, copy.deepcopy(start)]
    optimizers = [adamw(net.parameters()) for net in nets]
    attach(nets[1], optimizers[1])
    (message,) = messages(nets[0], optimizers[0], loop)
    assert re.match(MESSAGE, message)
    assert messages(nets[1], optimizers[1], loop) == []
    for name, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[name]), name
    assert int(nets[0][3].weight_count) == 4
    assert_unitary(nets[0])
    assert_unitary(copy.deepcopy(nets[0]).double().float())  # as it is saved


def by_hand(net: nn.Module, optimizer: torch.optim.Optimizer, *, first: bool = True) -> None:
    loss_of(net).backward()
    for step in (lambda: projunn_step(net), optimizer.step)[:: 1 if first else -1]:
        step()
    optimizer.zero_grad()


@pytest.mark.parametrize("gradient", ["dense", "factored"])
def test_an_optimiser_that_steps_before_projunn_step_is_attached_too(gradient):
    for loop in (plain, partial(by_hand, first=False)):
        net = model(gradient)
        (message,) = messages(net, adamw(net.parameters()), loop)
        assert re.match(MESSAGE, message)
        assert [int(layer.weight_count) for layer in (net[0], net[3])] == [4, 4]
    net = model(gradient)
    assert messages(net, adamw(net.parameters()), by_hand) == []


@pytest.mark.parametrize("gradient", ["dense", "factored"])
def test_weights_that_cannot_move_have_nothing_to_miss(gradient):
    frozen, still = model(gradient), model(gradient, lr=0.0)
    for layer in (frozen[0], frozen[3]):
        layer.weight.requires_grad_(False)
    for net in (frozen, still):
        before = net[0].weight.detach().clone()
        assert messages(net, adamw(net.parameters())) == []
        assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize("gradient", ["dense", "factored"])
def test_what_cannot_be_attached_is_reported(gradient):
    net = model(gradient)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=1e-3, max_iter=1)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(3):
            closing(net, optimizer)
    (message,) = [str(w.message) for w in found if "LBFGS" in str(w.message)]
    assert re.match(
        r"LBFGS was not attached, .* and 1 more .* LBFGS cannot be attached: take another optimiser", message
    )


def test_a_run_that_is_loaded_goes_on_bit_for_bit():
    whole = model()
    start, optimizer = copy.deepcopy(whole), adamw(whole.parameters())
    with pytest.warns(UserWarning, match=MESSAGE):
        plain(whole, optimizer)
    plain(whole, optimizer)
    first = adamw(start.parameters())
    with pytest.warns(UserWarning, match=MESSAGE):
        plain(start, first)
    resumed = model()
    second = adamw(resumed.parameters())
    resumed.load_state_dict(start.state_dict())
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    with pytest.warns(UserWarning, match=MESSAGE):
        plain(resumed, second)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_who_knows_of_unitary_weights_hears_nothing():
    for loop, make in ((by_hand, adamw), (plain, lambda p: ProjUNN(p, lr=0.01))):
        net = model()
        optimizer = make(net.parameters())
        assert messages(net, optimizer, loop) == []
        assert "_unitary_host" not in vars(optimizer)
        assert int(net[0].weight_count) == 4
    net = model()
    attach(net)
    assert messages(net, adamw(net.parameters())) == []
    ordinary = nn.Linear(N, N)
    assert messages(ordinary, adamw(ordinary.parameters())) == []


class Wrapper(torch.optim.Optimizer):
    """Steps another optimiser, as ZeroRedundancyOptimizer and implementations of SAM do."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base = base

    def step(self) -> None:
        self.base.step()


@pytest.mark.parametrize("wrap", [Wrapper, lambda base: Wrapper(Wrapper(base)), timm.optim.Lookahead])
@pytest.mark.parametrize("kind", ["ProjUNN", "attached"])
def test_who_wraps_an_optimiser_that_knows_of_unitary_weights_hears_nothing(wrap, kind):
    nets, optimizers = [model(lr=0.05) for _ in range(2)], []
    nets[1].load_state_dict(nets[0].state_dict())
    for net in nets:
        base = (
            ProjUNN(net.parameters(), lr=1e-3, direction="gradient") if kind == "ProjUNN" else adamw(net.parameters())
        )
        if kind == "attached":
            attach(net, base)
        optimizers.append(base)
    optimizers[1] = wrap(optimizers[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            torch.manual_seed(0)
            for _ in range(3):
                plain(net, optimizer)
    for mine, its in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(mine, its)


def test_a_wrapper_that_its_base_knows_of_is_looked_at_once():
    net = model()
    wrapper = Wrapper(ProjUNN(net.parameters(), lr=1e-3, direction="gradient"))
    wrapper.base.wrapper = wrapper
    plain(net, wrapper)
    assert_unitary(net)


def test_an_optimiser_that_was_detached_stays_so_until_it_is_attached_again():
    net = model()
    optimizer = adamw(net.parameters())
    attach(net, optimizer).remove()
    for count in range(2):  # each weight is reported once, and again after a step of ours
        found = messages(net, optimizer)
        assert len(found) == 2
        assert all("was written by something else" in message for message in found)
        assert int(net[0].weight_count) == count
        handle = attach(net, optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain(net, optimizer)
        handle.remove()


def test_layers_that_come_later_and_an_attachment_that_comes_late_are_seen():
    net = model()
    optimizer = adamw(net[:2].parameters())
    with pytest.warns(UserWarning, match=r"'UnitaryLinear.weight' \(6, 6\) for an ordinary parameter"):
        plain(net, optimizer)
    optimizer.add_param_group({"params": net[3].parameters()})
    plain(net, optimizer)
    assert [int(layer.weight_count) for layer in (net[0], net[3])] == [2, 1]
    handle = attach(net, optimizer, lr_scale=0.0)
    before = copy.deepcopy(net[0].weight)
    plain(net, optimizer)
    torch.testing.assert_close(net[0].weight, before, rtol=0, atol=1e-5)
    handle.remove()
    assert "_unitary_host" not in vars(optimizer)


def test_a_copy_of_an_optimiser_that_is_attached_is_a_stranger():
    net = model()
    optimizer = adamw(net.parameters())
    attach(net, optimizer)
    with pytest.warns(UserWarning, match=MESSAGE):
        plain(net, copy.copy(optimizer))
    assert int(net[0].weight_count) == 1


def test_timms_own_loop_ends_on_the_manifold():
    net = model()
    optimizer = timm.optim.create_optimizer_v2(net, "adamw", lr=0.01, weight_decay=0.5)
    average = timm.utils.ModelEmaV3(net)
    found = messages(net, optimizer, lambda net, o: (plain(net, o), average.update(net)))
    assert len(found) == 1
    assert_unitary(net)

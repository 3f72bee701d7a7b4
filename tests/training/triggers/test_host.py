"""The unitary step beside another optimiser's: what that one sees of the weights, and when."""

import copy
import gc
import pickle
import weakref

import pytest
import timm.optim
import torch
from timm.optim import Adahessian, Lookahead
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from unitary_layers import UnitaryLinear, UpdateRule, attach, projunn_step
from unitary_layers.testing import assert_unitary

N = 6
X = torch.randn(5, N, generator=torch.Generator().manual_seed(0))


def layers(count: int = 1, **options: object) -> list[UnitaryLinear]:
    return [UnitaryLinear(N, N, update=UpdateRule(lr=0.1, momentum=0.9), **options) for _ in range(count)]


def loss_of(net: nn.Module) -> Tensor:
    return (net(X) - 1).square().mean()


def size_of(optimizer: torch.optim.Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]


def test_parts_of_a_model_may_be_attached_one_by_one():
    whole = nn.Sequential(*layers(2))
    for layer in whole:  # a sample of the whole gradient, whatever the place in a tree
        layer.update = UpdateRule(lr=0.1, rank=N, direction="gradient")
    parts = copy.deepcopy(whole)
    for net, attached in ((whole, [whole]), (parts, list(parts))):
        optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.01), torch.amp.GradScaler("cpu")
        handles = [attach(module, optimizer, scaler=scaler) for module in attached]
        for _ in range(3):
            scaler.scale(loss_of(net)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert size_of(optimizer) == [4]
        for handle in handles:
            handle.remove()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert_unitary(parts)


@pytest.mark.parametrize("gradient", ["dense", "factored"])
def test_a_host_that_maximises_does_so_with_all_weights(gradient):
    torch.manual_seed(0)
    down = nn.Sequential(*layers(gradient=gradient))
    up = copy.deepcopy(down)
    for net, sign in ((down, 1), (up, -1)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, maximize=sign < 0)
        attach(net, optimizer)
        for _ in range(5):
            (sign * loss_of(net)).backward()
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(down.parameters(), up.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_closure_sees_the_unitary_weights():
    net = nn.Sequential(*layers(), nn.Linear(N, N))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(net, optimizer)
    (1e3 * loss_of(net)).backward()  # which no step has followed

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 0.5)
        norms = torch.stack([p.grad.norm() for p in parameters])
        assert len(parameters) == 4
        assert norms.norm() <= 0.5 * (1 + 1e-5)
        return loss

    for step in (lambda: optimizer.step(closure), lambda: optimizer.step(closure=closure)):
        count = int(net[0].weight_count)
        step()
        assert int(net[0].weight_count) == count + 1
        assert size_of(optimizer) == [4]


def test_a_refused_gradient_stops_both_steps():
    net = nn.Sequential(nn.Linear(N, N), *layers())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(net, optimizer)
    loss_of(net).backward()
    net[1].weight.grad[0, 0] = float("nan")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=r"finite gradient of the unitary weight '1.weight'"):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert size_of(optimizer) == [4]


def test_a_state_saved_after_an_error_is_whole():
    net = nn.Sequential(*layers())

    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise KeyError("the host")

    optimizer = Broken(net.parameters(), lr=0.1)
    attach(net, optimizer)
    with pytest.raises(KeyError):
        optimizer.step()
    torch.optim.SGD(net.parameters(), lr=0.1).load_state_dict(optimizer.state_dict())
    assert size_of(optimizer) == [2]


def test_groups_that_come_later_are_scheduled_too():
    net = nn.Sequential(*layers(2))
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    attach(net, optimizer)
    optimizer.add_param_group({"params": net[1].parameters(), "lr": 0.5})
    for factor in (1.0, 1e-3, 0.0):
        for group, rate in zip(optimizer.param_groups, (0.1, 0.5), strict=True):
            group["lr"] = rate * factor
        before = [layer.weight.detach().clone() for layer in net]
        loss_of(net).backward()
        optimizer.step()
        optimizer.zero_grad()
        for layer, weight in zip(net, before, strict=True):
            assert (layer.weight - weight).norm() <= factor * 10 + N * torch.finfo(torch.float32).eps
            assert factor < 1 or not torch.equal(layer.weight, weight)


def test_a_wrapper_of_optimisers_takes_the_first_step_too():
    net = nn.Sequential(*layers())
    optimizer = Lookahead(torch.optim.SGD(net.parameters(), lr=0.1), k=1)
    attach(net, optimizer)
    for count in (1, 2):
        loss_of(net).backward()
        optimizer.step()
        assert int(net[0].weight_count) == count
        assert_unitary(net)


@pytest.mark.parametrize("is_loaded_first", [False, True])
def test_a_wrapper_goes_on_with_the_momenta_that_it_loads(is_loaded_first):
    def made() -> tuple[nn.Module, Lookahead]:
        net = nn.Sequential(UnitaryLinear(N, N), UnitaryLinear(N, N))
        return net, Lookahead(torch.optim.SGD(net.parameters(), lr=0.1), k=2)

    def step(net: nn.Module, optimizer: Lookahead) -> None:
        optimizer.zero_grad()
        loss_of(net).backward()
        torch.manual_seed(0)
        optimizer.step()

    net, optimizer = made()
    attach(net, optimizer)
    step(net, optimizer)
    states = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    step(net, optimizer)
    other, resumed = made()
    other.load_state_dict(states[0])
    actions = [lambda: resumed.load_state_dict(states[1]), lambda: attach(other, resumed)]
    for action in actions if is_loaded_first else reversed(actions):
        action()
    step(other, resumed)
    assert all(map(torch.equal, net.parameters(), other.parameters()))


def test_a_removed_hook_lets_go_of_the_model():
    net = nn.Sequential(*layers())
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    attach(net, optimizer).remove()
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
    optimizer.zero_grad()


@pytest.mark.parametrize("how", ["unfrozen", "replaced", "assigned"])
def test_backward_steps_weights_that_come_later(how):
    net = nn.Sequential(*layers(), nn.Linear(N, N))
    net[0].weight.requires_grad_(how != "unfrozen")
    handle = attach(net)
    if how == "unfrozen":
        net[0].weight.requires_grad_(True)
    elif how == "replaced":
        net[0] = layers()[0]
    else:
        net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    for count in (1, 2):
        loss_of(net).backward()
        assert int(net[0].weight_count) == count
    handle.remove()
    loss_of(net).backward()
    assert int(net[0].weight_count) == 2


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_a_copy_of_a_module_is_not_attached(clone):
    net = nn.Sequential(*layers())
    handle = attach(net)
    twin = clone(net)
    for _ in range(2):
        loss_of(twin).backward()
        assert int(twin[0].weight_count) == 0
        assert twin[0].weight.grad is not None
    loss_of(net).backward()
    assert int(net[0].weight_count) == 1
    handle.remove()


@pytest.mark.parametrize("is_parameter", [True, False])
def test_what_stands_for_the_weights_in_a_forward_is_not_attached(is_parameter):
    net = nn.Sequential(*layers())
    attach(net)
    fast = {name: p.detach() * 0.9 if is_parameter else p * 0.9 for name, p in net.named_parameters()}
    if is_parameter:
        fast = {name: nn.Parameter(p) for name, p in fast.items()}
    (functional_call(net, fast, (X,)) - 1).square().mean().backward()
    assert int(net[0].weight_count) == (not is_parameter)  # by whose gradient the others are made


class Host(torch.optim.SGD):
    """An optimiser that does after its step what a test wants."""

    then = staticmethod(lambda optimizer: None)

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            self.then(self)
        return loss


def test_a_host_may_zero_gradients_within_its_step():
    def then(optimizer):
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.mul_(0.9)

    net = nn.Sequential(*layers(), nn.Linear(N, N))
    optimizer = Host(net.parameters(), lr=0.1)
    optimizer.then = then
    attach(net, optimizer)

    def closure() -> Tensor:
        loss = loss_of(net)
        loss.backward()
        return loss

    closure()
    optimizer.step()
    assert int(net[0].weight_count) == 1
    optimizer.step(closure)
    assert int(net[0].weight_count) == 2
    assert_unitary(net)
    assert size_of(optimizer) == [4]


def test_several_attachments_survive_an_error_of_their_host():
    net = nn.Sequential(*layers(2), nn.Linear(N, N))
    optimizer = Host(net.parameters(), lr=0.1)
    handles = [attach(net[0], optimizer), attach(net[1], optimizer)]

    def then(optimizer):
        raise KeyError

    optimizer.then = then
    with pytest.raises(KeyError):
        optimizer.step()
    optimizer.load_state_dict(torch.optim.SGD(net.parameters(), lr=0.1).state_dict())
    with pytest.raises(KeyError):
        optimizer.step()
    assert [len(group["params"]) for group in optimizer.state_dict()["param_groups"]] == [6]
    for handle in handles:
        handle.remove()
    assert size_of(optimizer) == [6]


def test_a_gradient_that_one_of_several_modules_refuses_stops_all():
    net = nn.Sequential(*layers(2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for layer in net:
        attach(layer, optimizer)
    loss_of(net).backward()
    net[1].weight.grad[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="finite gradient"):
        optimizer.step()
    assert [int(layer.weight_count) for layer in net] == [0, 0]


def test_a_factored_overflow_in_one_of_several_modules_skips_the_whole_step():
    net = nn.ModuleList([*layers(), *layers(gradient="factored", bias=False), nn.Linear(N, N)])
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    for layer in net[:2]:
        attach(layer, optimizer, scaler=scaler)
    before = copy.deepcopy(net.state_dict())
    (2.0**100 * scaler.scale(net[1](X).sum()) * 2.0**20).backward()
    scaler.scale(loss_of(net[0]) + loss_of(net[2])).backward()
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < scale
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_weight_attached_twice_moves_once_at_the_rate_of_its_group():
    nets = [nn.Sequential(*layers())]
    nets.append(copy.deepcopy(nets[0]))
    for net, times in zip(nets, (1, 2), strict=True):
        head = nn.Linear(N, N)
        optimizer = torch.optim.SGD([{"params": head.parameters()}, {"params": net.parameters()}], lr=0.1)
        for _ in range(times):
            attach(net, optimizer)
        optimizer.param_groups[0]["lr"] = 0.0

        def closure(net=net, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(net)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert int(nets[1][0].weight_count) == 1
    assert torch.equal(nets[0][0].weight, nets[1][0].weight)


def test_a_wrapper_without_step_hooks_is_looked_into():
    """As accelerate's, whose ``optimizer`` is the one inside."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

        param_groups = property(lambda self: self.optimizer.param_groups)

    net = nn.Sequential(*layers())
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = attach(net, Wrapper(Wrapper(inner)))
    net(X).square().mean().backward()
    inner.step()
    assert net[0].weight_count == 1
    handle.remove()


def test_a_wrapper_without_step_hooks_is_refused_and_left_alone():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, base):
            self.base = base

        param_groups = property(lambda self: self.base.param_groups)

        def step(self, closure=None):
            return self.base.step(closure)

    net = nn.Sequential(*layers())
    wrapper = Wrapper(torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="expected an optimizer with step hooks, got a Wrapper"):
        attach(net, wrapper)
    wrapper.step()


def test_a_handle_removed_within_the_closure():
    net = nn.Sequential(*layers())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = attach(net, optimizer)

    def closure() -> Tensor:
        handle.remove()
        return loss_of(net)

    optimizer.step(closure)
    assert size_of(optimizer) == [2]


def test_attaching_and_removing_leaves_nothing_behind():
    net = nn.Sequential(*layers())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = dict(vars(optimizer))
    for _ in range(3):
        attach(net, optimizer).remove()
    assert vars(optimizer) == before


def test_a_momentum_outlives_detaching():
    start = nn.Sequential(UnitaryLinear(N, N))
    results = []
    for is_detached in (False, True):
        net = copy.deepcopy(start)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        handle = attach(net, optimizer)
        for _ in range(3):
            loss_of(net).backward()
            optimizer.step()
            if is_detached:
                handle.remove()
                handle = attach(net, optimizer)
        results.append(net[0].weight)
    assert torch.equal(*results)


def test_weights_outlive_the_container_that_was_attached():
    net = nn.Sequential(*layers(2))
    handle = attach(nn.ModuleList(net))
    gc.collect()
    loss_of(net).backward()
    assert [int(layer.weight_count) for layer in net] == [1, 1]
    handle.remove()


def test_a_wrapper_whose_step_a_schedule_has_taken():
    class Late(Lookahead):
        """A class that nothing has hooked yet."""

        def step(self, closure=None):
            return super().step(closure)

    net = nn.Sequential(*layers(), nn.Linear(N, N))
    optimizer = Late(torch.optim.SGD(net.parameters(), lr=0.1))
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    attach(net, optimizer)
    loss_of(net).backward()
    optimizer.step()
    assert int(net[0].weight_count) == 1
    assert_unitary(net)


def test_a_host_that_differentiates_the_gradients_steps_first():
    net = nn.Sequential(nn.Linear(N, N), nn.Tanh(), *layers(), nn.Linear(N, N))
    optimizer = Adahessian(net.parameters(), lr=0.1)
    attach(net, optimizer)
    grads = torch.autograd.grad(loss_of(net), list(net.parameters()), create_graph=True)
    for p, g in zip(net.parameters(), grads, strict=True):
        p.grad = g
    optimizer.step()
    assert int(net[2].weight_count) == 1
    assert_unitary(net)


def test_a_disabled_scaler_leaves_what_is_not_finite_to_the_rule():
    net = nn.Sequential(*layers(gradient="factored"))
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu", enabled=False)
    attach(net, optimizer, scaler=scaler)
    (net(X) * torch.nan).sum().backward()
    with pytest.raises(RuntimeError, match="expected a finite gradient"):
        scaler.step(optimizer)


def test_closures_and_zero_grad_of_any_form():
    class Own(torch.optim.SGD):
        def zero_grad(self):
            super().zero_grad()

        def step(self, closure=None):
            closure(2)
            self.zero_grad()
            closure(1)
            return super().step()

    nets = [nn.Sequential(*layers(bias=False))]
    nets[0][0].update = UpdateRule(rank=N, lr=1e-3)
    nets.append(copy.deepcopy(nets[0]))
    optimizer = Own(nets[0].parameters(), lr=0.1)
    attach(nets[0], optimizer)
    optimizer.step(lambda factor: (factor * loss_of(nets[0])).backward())
    loss_of(nets[1]).backward()
    nets[1][0].projunn_step()
    torch.testing.assert_close(nets[0][0].weight, nets[1][0].weight)
    optimizer.zero_grad()


def test_a_handle_whose_layers_have_gone_is_removed():
    net = nn.Sequential(*layers(gradient="factored"), nn.Linear(N, N))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = attach(net, optimizer, scaler=torch.amp.GradScaler("cpu"))
    net[0] = nn.Linear(N, N)
    handle.remove()
    assert not optimizer._optimizer_step_pre_hooks


def test_a_host_that_catches_an_error_of_its_own_and_goes_on():
    class Retry(torch.optim.SGD):
        tries = 0

        def step(self, closure=None):
            try:
                return super().step(self.fail)
            except KeyError:
                return super().step(closure)

        def fail(self):
            raise KeyError

    net = nn.Sequential(*layers())
    optimizer = Retry(net.parameters(), lr=0.1)
    attach(net, optimizer)
    for count in (1, 2):
        loss_of(net).backward()
        optimizer.step()
        assert int(net[0].weight_count) == count
        assert size_of(optimizer) == [2]
    assert_unitary(net)


def test_backward_steps_only_what_it_has_finished():
    first, second = layers(2, gradient="factored")
    net = nn.ModuleList([first, second])
    attach(net)
    y = first(checkpoint(second, first(X), use_reentrant=True).tanh())
    y.square().mean().backward()
    assert int(second.weight_count) == 1
    assert int(first.weight_count) == 1


def built(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    """An optimiser of timm, or None where it is one of another package that is not there."""
    try:
        return timm.optim.create_optimizer_v2(parameters, name, lr=1e-2, weight_decay=0.01)
    except AssertionError:
        return None


@pytest.mark.filterwarnings("ignore")  # whatever they have to say
def test_beside_every_optimiser_of_timm_the_step_is_that_by_hand():
    start = nn.Sequential(nn.Linear(N, N), nn.Tanh(), *layers(), nn.Linear(N, N))
    compared = 0
    for name in timm.optim.list_optimizers():
        attached, by_hand = copy.deepcopy(start), copy.deepcopy(start)
        host = built(name, list(attached.parameters()))
        other = built(name, [p for p in by_hand.parameters() if p is not by_hand[2].weight])
        if host is None or other is None:
            continue
        attach(attached, host)
        is_second_order = getattr(host, "is_second_order", False)
        for step in range(3):
            for net, optimizer in ((attached, host), (by_hand, other)):
                torch.manual_seed(step)  # some draw numbers
                loss_of(net).backward(create_graph=is_second_order)
                optimizer.step()
                if net is by_hand:
                    projunn_step(net)
                net.zero_grad()
        assert int(attached[2].weight_count) == 3, name
        for p, q in zip(attached.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(p, q, msg=lambda text, name=name: f"{name}: {text}")
        compared += 1
    assert compared > 50

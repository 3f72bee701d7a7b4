"""What a rate is relative to: every scheduler of torch and timm against the same curve by hand, in any order."""

import copy
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import timm.scheduler
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as of_torch
from torch.optim.swa_utils import SWALR

from unitary_layers import ProjUNN, UnitaryLinear, UpdateRule, attach, projunn_step
from unitary_layers.training.triggers.rates import lr_factor

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated"),
]
N, LR, STEPS = 4, 0.25, 10
SGD = torch.optim.SGD
X = torch.randn(5, N, generator=torch.Generator().manual_seed(0))


def warmed(step: int) -> float:
    """Up in four steps, down in six, as in transformers."""
    return step / 4 if step < 4 else (STEPS - step) / 6


def noam(step: int) -> float:
    return 0.05 * min((step + 1) ** -0.5, (step + 1) * 4**-1.5)


def chained(optimizer: SGD) -> of_torch.LRScheduler:
    return of_torch.ChainedScheduler([of_torch.LinearLR(optimizer, 0.2, total_iters=3), of_torch.StepLR(optimizer, 5)])


def sequential(optimizer: SGD) -> of_torch.LRScheduler:
    parts = [of_torch.LinearLR(optimizer, 0.1, total_iters=4), of_torch.CosineAnnealingLR(optimizer, 6)]
    return of_torch.SequentialLR(optimizer, parts, [4])


def timms(name: str, **options: Any) -> Callable[[SGD], Any]:
    return lambda optimizer: getattr(timm.scheduler, name)(optimizer, **options)


class Case(NamedTuple):
    """A scheduler, the height of its curve, and whether its group tells it before it is reached."""

    make: Callable[[SGD], Any]
    height: float = LR
    is_told: bool = True
    follow: Callable[[Any, int], None] = lambda schedule, step: schedule.step()


def plateau(schedule: Any, step: int) -> None:
    schedule.step(*([1.0] if isinstance(schedule, of_torch.ReduceLROnPlateau) else [step + 1, 1.0]))


def epoch(schedule: Any, step: int) -> None:
    schedule.step(step + 1)


PREFIXED = {"warmup_t": 4, "warmup_lr_init": 1e-3, "warmup_prefix": True}
CASES = {
    "LambdaLR": Case(lambda o: of_torch.LambdaLR(o, warmed)),
    "MultiplicativeLR": Case(lambda o: of_torch.MultiplicativeLR(o, lambda step: 0.8)),
    "StepLR": Case(lambda o: of_torch.StepLR(o, 3)),
    "MultiStepLR": Case(lambda o: of_torch.MultiStepLR(o, [3, 6])),
    "ConstantLR": Case(lambda o: of_torch.ConstantLR(o, 0.5, 4)),
    "LinearLR": Case(lambda o: of_torch.LinearLR(o, 0.1, total_iters=4)),
    "ExponentialLR": Case(lambda o: of_torch.ExponentialLR(o, 0.7)),
    "SequentialLR": Case(sequential),
    "PolynomialLR": Case(lambda o: of_torch.PolynomialLR(o, STEPS)),
    "CosineAnnealingLR": Case(lambda o: of_torch.CosineAnnealingLR(o, STEPS)),
    "ChainedScheduler": Case(chained),
    "ReduceLROnPlateau": Case(lambda o: of_torch.ReduceLROnPlateau(o, patience=1), follow=plateau),
    "CosineAnnealingWarmRestarts": Case(lambda o: of_torch.CosineAnnealingWarmRestarts(o, 4)),
    "OneCycleLR": Case(lambda o: of_torch.OneCycleLR(o, 3.0, STEPS + 1, pct_start=4 / 11, cycle_momentum=False), 3.0),
    "CyclicLR": Case(lambda o: of_torch.CyclicLR(o, 1e-3, 0.1, 3, cycle_momentum=False), 0.1, is_told=False),
    "SWALR": Case(lambda o: SWALR(o, 0.05, anneal_epochs=4)),
    "Noam": Case(lambda o: of_torch.LambdaLR(o, noam), LR * noam(3), is_told=False),
    "search": Case(lambda o: of_torch.ExponentialLR(o, 10.0), LR * 10.0 ** (STEPS - 1), is_told=False),
    "CosineLRScheduler": Case(timms("CosineLRScheduler", t_initial=6, **PREFIXED), follow=epoch),
    "MultiStepLRScheduler": Case(timms("MultiStepLRScheduler", decay_t=[3, 6]), follow=epoch),
    "PlateauLRScheduler": Case(timms("PlateauLRScheduler", patience_t=1), follow=plateau),
    "PolyLRScheduler": Case(timms("PolyLRScheduler", t_initial=6, **PREFIXED), follow=epoch),
    "StepLRScheduler": Case(timms("StepLRScheduler", decay_t=2, decay_rate=0.5), follow=epoch),
    "TanhLRScheduler": Case(timms("TanhLRScheduler", t_initial=6, lb=-9, **PREFIXED), follow=epoch),
    "WSDLRScheduler": Case(
        timms("WSDLRScheduler", t_initial=6, decay_t=3, warmup_t=4, warmup_lr_init=1e-3), follow=epoch
    ),
}


def test_every_scheduler_is_tried():
    expected = {name for name in of_torch.__all__ if name != "LRScheduler"} | {"SWALR"}
    expected |= {name for name in vars(timm.scheduler) if name.endswith("LRScheduler")}
    assert expected == set(CASES) - {"Noam", "search"}


def layer() -> UnitaryLinear:
    return UnitaryLinear(N, N, bias=False, update=UpdateRule(rank=2, lr=0.3, momentum=0.9))


def loss_of(net: nn.Module) -> Tensor:
    return (net(X) - 1).square().mean()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_told", [False, True])
def test_every_scheduler_is_followed_relative_to_its_height(name, is_told):
    """Told the height by ``lr_scale`` or not; where no group tells it, from the first time that it is reached."""
    case, net, by_hand = CASES[name], layer(), None
    optimizer = SGD(net.parameters(), lr=LR)
    schedule = case.make(optimizer)
    attach(net, optimizer, lr_scale=(lambda group: group["lr"] / case.height) if is_told else None)
    highest = 0.0
    for step in range(STEPS):
        lr = float(optimizer.param_groups[0]["lr"])
        highest = max(highest, lr)
        by_hand = copy.deepcopy(net)
        for n in (net, by_hand):
            n.zero_grad()
            loss_of(n).backward()
        optimizer.step()
        is_followed = is_told or case.is_told or lr < highest
        of_first_rise = lr / LR if name == "Noam" else 1.0
        factor = lr / case.height if is_followed else of_first_rise
        projunn_step(by_hand, lr_scale=factor)
        torch.testing.assert_close(net.weight, by_hand.weight)
        case.follow(schedule, step)
    assert highest == pytest.approx(case.height, rel=1e-4)


SCHEDULES: dict[str, Callable[[SGD], Any]] = {
    "none": lambda o: None,
    "LambdaLR": lambda o: of_torch.LambdaLR(o, warmed),
    "Noam": lambda o: of_torch.LambdaLR(o, noam),
    "OneCycleLR": CASES["OneCycleLR"].make,
    "CyclicLR": CASES["CyclicLR"].make,
    "timm": CASES["CosineLRScheduler"].make,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_order_of_attaching_loading_and_scheduling_does_not_matter(name):
    """A new run and one that goes on; with a rate that was lowered by hand before it was saved, if nothing else is."""

    def run(order: tuple[str, ...], saved: dict[str, Any] | None, steps: int) -> tuple[list[Any], dict[str, Any]]:
        net = layer()
        optimizer, schedule = SGD(net.parameters(), lr=LR), None
        for what in order:
            if what == "attach":
                attach(net, optimizer)
            elif what == "schedule":
                schedule = SCHEDULES[name](optimizer)
            elif saved is not None:
                optimizer.load_state_dict(copy.deepcopy(saved))
        group, seen = optimizer.param_groups[0], []
        if name != "none" and saved is not None:
            group["lr"] = saved["param_groups"][0]["lr"]  # a new scheduler has set it
        for step in range(steps):
            if name == "none" and step == 2:
                group["lr"] *= 0.1
            loss_of(net).backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append((group["lr"], lr_factor(group)))
            if schedule is not None:
                (epoch if name == "timm" else CASES["StepLR"].follow)(schedule, step)
        return seen, optimizer.state_dict()

    orders = list(itertools.permutations(("attach", "load", "schedule")))
    first = [run(order, None, 7) for order in orders]
    assert all(seen == first[0][0] for seen, _ in first)
    assert 0.85 < max(factor for _, factor in first[0][0]) <= 1
    resumed = [run(order, state, 1) for order, (_, state) in zip(orders, first, strict=True)]
    (lr, factor), height = resumed[0][0][0], max(lr for lr, _ in first[0][0])
    assert all(seen == resumed[0][0] for seen, _ in resumed)
    assert factor == pytest.approx(lr / height)


def test_a_rate_lowered_by_hand_stays_low_when_it_is_attached_after_loading():
    net = layer()
    optimizer = SGD(net.parameters(), lr=LR)
    attach(net, optimizer)
    optimizer.param_groups[0]["lr"] = LR / 10
    later = SGD(net.parameters(), lr=LR)
    later.load_state_dict(optimizer.state_dict())
    attach(net, later)
    assert lr_factor(later.param_groups[0]) == pytest.approx(0.1)


def test_a_search_for_a_rate_that_is_undone_leaves_no_trace():
    net = layer()
    optimizer = SGD(net.parameters(), lr=1e-7)
    attach(net, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    for exponent in range(-7, 9):
        optimizer.param_groups[0]["lr"] = 10.0**exponent
        loss_of(net).backward()
        optimizer.step()
        assert lr_factor(optimizer.param_groups[0]) == 1
    optimizer.load_state_dict(before)
    assert lr_factor(optimizer.param_groups[0]) == 1


def test_a_rate_of_zero_is_a_rate():
    group: dict[str, Any] = {"lr": 0.0}
    assert lr_factor(group) == 0
    group["lr"] = 0.1
    assert lr_factor(group) == 1
    assert lr_factor({"lr": None}) == 1


def test_layer_decay_of_timm_is_no_schedule():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": LR, "lr_scale": 0.5}]
    optimizer = SGD(groups)
    schedule = CASES["CosineLRScheduler"].make(optimizer)
    found = []
    for step in range(STEPS):
        found.append(lr_factor(optimizer.param_groups[0]))
        schedule.step(step + 1)
    assert max(found) == found[4] == 1
    assert found[0] == pytest.approx(1e-3 / LR)


def test_the_optimiser_for_whole_models_has_the_same_height():
    for name, case in CASES.items():
        factors = []
        for make in (SGD, ProjUNN):
            net = layer()
            optimizer = make(net.parameters(), lr=LR)
            if make is SGD:
                attach(net, optimizer)
            schedule = case.make(optimizer)
            for step in range(4):
                loss_of(net).backward()
                optimizer.step()
                factors.append(lr_factor(optimizer.param_groups[0]))
                case.follow(schedule, step)
        assert factors[:4] == factors[4:], name


def test_the_scale_of_a_module_is_its_own_and_checked_at_each_step():
    net = nn.Sequential(layer(), layer())
    optimizer = SGD(net.parameters(), lr=LR)
    before = copy.deepcopy(net.state_dict())
    attach(net[0], optimizer, lr_scale=0.0)
    handle = attach(net[1], optimizer, lr_scale=lambda group: group["lr"] - 1)
    loss_of(net).backward()
    with pytest.raises(ValueError, match=r"expected lr_scale\(group\) to be a finite number of at least 0, got -0.75"):
        optimizer.step()
    handle.remove()
    attach(net[1], optimizer)
    optimizer.step()
    eps = 100 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(net[0].weight, before["0.weight"], rtol=0, atol=eps)
    assert (net[1].weight - before["1.weight"]).norm() > 0.1

"""Two threads, two models: each becomes bit for bit what it becomes alone."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

from unitary_layers import ProjUNN, UnitaryLinear, UnitaryRNN, UpdateRule, attach, projunn_step
from unitary_layers.training.owners import weights_of

STEPS = 15


@pytest.fixture(autouse=True)
def _hasty() -> Iterator[None]:
    """Lets Python change threads every few instructions, so that what can race does."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def linear(gradient: str, **options: object) -> nn.Module:
    rule = UpdateRule(lr=0.05, rank=2, **options)
    return nn.Sequential(*(UnitaryLinear(8, 8, update=rule, gradient=gradient) for _ in range(3)))


def recurrent(gradient: str, **options: object) -> nn.Module:
    return UnitaryRNN(8, 8, nonlinearity="modrelu", gradient=gradient, update=UpdateRule(lr=0.05, **options))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: linear("dense"),
    "power": lambda: linear("dense", sampler="power", direction="gradient"),
    "factored": lambda: linear("factored", direction="gradient"),
    "spectral": lambda: linear("dense", momentum=0.9),
    "recurrent": lambda: recurrent("factored", sampler="power"),
}
TRIGGERS = ("step", "attach", "attach to backward", "ProjUNN")


def train(module: nn.Module, seed: int, trigger: str, start: Callable[[], object] = lambda: None) -> list[Tensor]:
    """The parameters after some steps on inputs of this seed."""
    generator = torch.Generator().manual_seed(seed)
    if trigger == "ProjUNN":
        optimizer = ProjUNN(module.parameters(), lr=0.05)
    else:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    handle = {"attach": lambda: attach(module, optimizer), "attach to backward": lambda: attach(module)}
    handle.get(trigger, lambda: None)()
    start()
    for step in range(STEPS):
        y = module(torch.randn(4, 8, generator=generator))
        (y[0] if isinstance(y, tuple) else y).sub(0.1).square().sum().backward()
        if trigger == "step":
            projunn_step(module, lr_scale=1 / (step + 1))
        optimizer.step()
        module.zero_grad()
    return [p.detach().clone() for p in module.parameters()]


def built(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name]()


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("name", MODELS)
def test_two_models_in_two_threads_do_not_disturb_each_other(name, trigger):
    alone = [train(built(name, seed), seed, trigger) for seed in (1, 2)]
    models, together = [built(name, seed) for seed in (1, 2)], Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(train, m, s, trigger, together.wait) for m, s in zip(models, (1, 2), strict=True)]
        results = [run.result(timeout=60) for run in runs]
    for ours, theirs in zip(results, alone, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_modules_are_built_found_and_forgotten_in_many_threads():
    together = Barrier(4)

    def build(seed: int) -> int:
        together.wait()
        found = 0
        for _ in range(50):
            layers = [UnitaryLinear(2, 2, init="identity") for _ in range(3)]
            found += len(weights_of(p for layer in layers for p in layer.parameters()))
            layers.pop()
        return found

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(build, range(4))) == [150] * 4


def test_a_layer_is_found_whole_or_not_at_all(monkeypatch):
    register, found = nn.Module.register_buffer, []

    def look_and_register(module: nn.Module, name: str, *value: Tensor) -> None:
        found.extend(weights_of(module.parameters()))  # as another thread might just now
        register(module, name, *value)

    monkeypatch.setattr(nn.Module, "register_buffer", look_and_register)
    layer = UnitaryLinear(2, 2, update=UpdateRule(sampler="power"), gradient="factored")
    assert not found
    assert list(weights_of(layer.parameters())) == [layer.weight]

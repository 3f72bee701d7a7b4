"""Weights of many matrices, of which only those that a batch has used take a step."""

import copy

import pytest
import torch
from torch import Tensor, nn

from unitary_layers import ProjUNN, UnitaryWordRNN, UpdateRule, attach, projunn_step
from unitary_layers.linalg import unitarity_error
from unitary_layers.testing import assert_unitary
from unitary_layers.training.batch import step_of
from unitary_layers.training.lazy import lazy
from unitary_layers.training.reduced import ReducedGradient

V, N = 6, 8
RULES = {
    "spectral": UpdateRule(lr=0.3, momentum=0.9),
    "without momentum": UpdateRule(lr=0.3),
    "power": UpdateRule(lr=0.3, sampler="power", rank=2, momentum=0.9),
    "gradient": UpdateRule("D", lr=0.3, direction="gradient", rank=2),
}


def loss_of(module: nn.Module, ids: list[int], seed: int = 0) -> Tensor:
    """Mean squared distance of the states of a sentence to fixed ones."""
    output, _ = module(torch.tensor(ids))
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)) / N**0.5
    return (output - target).square().mean()


def by_word(module: nn.Module) -> dict[str, Tensor]:
    """Copies of what is kept of each word: its matrix and what the rule remembers of it."""
    return {k: t.detach().clone() for k, t in module.state_dict().items() if t.ndim and t.size(0) == V}


def steps_of(module: nn.Module, how: str) -> object:
    if how == "projunn_step":
        return lambda: projunn_step(module)
    if how == "attach":
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        attach(module, optimizer)
    else:
        optimizer = ProjUNN(module.parameters(), lr=0.1, direction=how)
    return optimizer.step


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=["real", "complex"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_word_that_does_not_occur_keeps_every_bit(rule, dtype):
    module = UnitaryWordRNN(V, N, dtype=dtype, update=rule)
    for _ in range(3):
        loss_of(module, [0, 1, 2, 3, 4, 5]).abs().backward()
        projunn_step(module)
    before = by_word(module)
    assert len(before) > (0 if rule.momentum is None else 3)
    for seed in range(3):
        loss_of(module, [1, 4, 1], seed).abs().backward()
        projunn_step(module)
    moved = {name: (after != before[name]).flatten(1).any(1).tolist() for name, after in by_word(module).items()}
    assert set(map(tuple, moved.values())) == {(False, True, False, False, True, False)}
    assert module.weight_count == 6
    assert_unitary(module)


@pytest.mark.parametrize("how", ["attach", "rmsprop", "spectral"])
def test_nor_does_an_optimiser_move_it(how):
    module = UnitaryWordRNN(V, N)
    step = steps_of(module, how)
    for _ in range(3):
        loss_of(module, [0, 1, 2, 3, 4, 5]).backward()
        step()
    twin, before = copy.deepcopy(module), by_word(module)
    loss_of(module, [1, 4, 1]).backward()
    step()
    moved = (module.weight != before["weight"]).flatten(1).any(1).tolist()
    assert moved == [False, True, False, False, True, False]
    assert_unitary(module)
    assert_unitary(twin)


def test_words_that_occur_move_as_those_of_a_smaller_vocabulary():
    rule = UpdateRule(lr=0.3, sampler="svd", momentum=0.9)  # which draws no random numbers
    module, small = UnitaryWordRNN(V, N, update=rule), UnitaryWordRNN(2, N, update=rule)
    small.load_state_dict({k: t[[1, 4]] if t.ndim and t.size(0) == V else t for k, t in module.state_dict().items()})
    for seed in range(4):
        for layer, ids in ((module, [1, 4, 4]), (small, [0, 1, 1])):
            loss_of(layer, ids, seed).backward()
            projunn_step(layer)
    assert torch.equal(module.weight[[1, 4]], small.weight)


def test_a_retraction_that_is_due_is_also_of_words_that_do_not_occur():
    module = UnitaryWordRNN(V, N, update=UpdateRule(retract_every=2))
    with torch.no_grad():
        module.weight.mul_(1 + 1e-6)  # no more than rounding may have made
    before = unitarity_error(module.weight.detach())
    for ids in ([1], [4]):
        loss_of(module, ids).backward()
        projunn_step(module)
    assert (unitarity_error(module.weight.detach()) < before / 4).all()


def test_a_step_that_no_word_takes_is_none():
    module = UnitaryWordRNN(V, N, padding_idx=0)
    before = by_word(module)
    loss_of(module, [0, 0]).backward()
    projunn_step(module)
    assert torch.equal(module.weight, before["weight"])
    assert module.weight.grad is None


def test_a_gradient_of_a_word_that_is_not_finite_is_refused():
    module = UnitaryWordRNN(V, N)
    loss_of(module, [1, 4, 1]).backward()
    module.weight.grad[4, 0, 0] = torch.nan
    with pytest.raises(RuntimeError, match=r"finite gradient.*'weight'"):
        projunn_step(module)
    assert module.weight.grad is not None


def test_ranks_that_share_gradients_take_the_words_that_any_of_them_has(monkeypatch):
    def other_rank_uses_word_4(x: Tensor, *_: object) -> None:
        x[4] = 1

    monkeypatch.setattr(torch.distributed, "all_reduce", other_rank_uses_word_4)
    module = UnitaryWordRNN(V, N)
    loss_of(module, [1, 1]).backward()
    (weight,) = module.own_unitary_weights()
    shared = ReducedGradient(weight.gradient, group=None)
    (part,) = lazy(step_of(weight, shared, weight.rule), shared)
    assert part.places.tolist() == [1, 4]
    assert torch.equal(part.direction.inner.dense(), module.weight.grad[[1, 4]])

"""What every layer promises: unitary at birth, after a hundred steps, and what a step does and does not touch."""

import itertools

import pytest
import torch
from entries import (
    ENTRIES,
    every_entry,
    gradient_of,
    loss_of,
    matrices,
    output_of,
    same_tensors,
    snapshot,
    spoil,
    step,
    unchanged,
)
from torch import nn

from unitary_layers import UnitaryModule, UpdateRule, projunn_step, retract_, unitarity_error_of
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights

RULES = [
    UpdateRule(variant, rank=rank, sampler=sampler, lr=0.3)
    for variant, sampler, rank in itertools.product("DT", ("lsi", "column", "power"), (1, 2))
]
# Each entry meets both variants, every sampler and both ranks, and some meet every rule.
THIRDS = (RULES[0], RULES[9], RULES[5]), (RULES[7], RULES[2], RULES[10])
ALL_RULES = ("linear", "linear-complex", "rnn-modrelu")
TRAININGS = [
    (entry, rule)
    for i, entry in enumerate(ENTRIES)
    for rule in (RULES if entry.name in ALL_RULES else THIRDS[i % 2])
    if not (entry.factored and rule.sampler == "column")
]

both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def units(module: nn.Module) -> list[UnitaryModule]:
    return [m for m in module.modules() if isinstance(m, UnitaryModule)]


@every_entry
@both_precisions
def test_unitary_at_birth(entry, dtype):
    module = entry.make(dtype)
    assert_unitary(module)  # 10 (n + 1) eps
    assert all(weight.parameter.is_contiguous() for weight in unitary_weights(module))
    assert all(p.dtype == dtype for p in module.parameters())
    assert unitarity_error_of(module) > 0
    for layer in units(module):
        assert 0 < layer.unitarity_error() <= unitarity_error_of(module)


@pytest.mark.parametrize(
    ("entry", "rule"), TRAININGS, ids=[f"{e.name}-{r.variant}-{r.sampler}-{r.rank}" for e, r in TRAININGS]
)
def test_unitary_and_better_after_a_hundred_steps(entry, rule):
    module, x = entry.make(update=rule), entry.input()
    before = matrices(module)
    losses = [step(module, x) for _ in range(100)]
    assert_unitary(module)
    moved = [float(torch.linalg.matrix_norm(after - before[name]).amax()) for name, after in matrices(module).items()]
    assert min(moved) > 0.01
    assert losses[-1] < losses[0]
    assert [int(weight.count) for weight in unitary_weights(module)] == [100] * len(before)


@every_entry
@both_precisions
def test_the_step_alone_lowers_the_loss(entry, dtype):
    module, x = entry.make(dtype, update=UpdateRule(lr=0.05)), entry.input(dtype)
    first = step(module, x, lr=0.0)
    for _ in range(29):
        last = step(module, x, lr=0.0)
    assert last < first


@every_entry
def test_a_step_takes_the_gradients_of_unitary_weights_and_no_others(entry):
    module, x = entry.make(), entry.input()
    loss_of(module, x).backward()
    unitary = {id(weight.parameter) for weight in unitary_weights(module)}
    others = {k: p.detach().clone() for k, p in module.named_parameters() if id(p) not in unitary}
    gradients = {k: p.grad.clone() for k, p in module.named_parameters() if id(p) not in unitary}
    before = matrices(module)
    projunn_step(module)
    for name, p in module.named_parameters():
        if id(p) in unitary:
            assert p.grad is None
        else:
            assert torch.equal(p, others[name])
            assert torch.equal(p.grad, gradients[name])
    assert all(not torch.equal(after, before[name]) for name, after in matrices(module).items())


@every_entry
def test_an_optimiser_that_steps_next_skips_the_unitary_weights(entry):
    module, x = entry.make(), entry.input()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        loss_of(module, x).backward()
        projunn_step(module)
        after_ours = matrices(module)
        optimizer.step()
        assert same_tensors(matrices(module), after_ours)
        optimizer.zero_grad()


@every_entry
def test_a_step_without_gradients_does_nothing(entry):
    module = entry.make(update=UpdateRule(sampler="power"))
    with unchanged(module):
        projunn_step(module)
        for layer in units(module):
            layer.projunn_step()


@every_entry
def test_a_step_at_rate_zero_moves_nothing_but_the_counter(entry):
    module, x = entry.make(update=UpdateRule(lr=0.0)), entry.input()
    before = matrices(module)
    step(module, x, lr=0.0)
    assert same_tensors(matrices(module), before)
    assert all(weight.count == 1 for weight in unitary_weights(module))


@every_entry
def test_a_frozen_weight_stays_bit_identical(entry):
    module, x = entry.make(), entry.input().requires_grad_()
    loss_of(module, x).backward()
    frozen, *rest = unitary_weights(module)
    frozen.parameter.requires_grad_(False)  # with a gradient that is still there
    before = matrices(module)
    projunn_step(module)
    for _ in range(3):
        step(module, x)
    after = matrices(module)
    assert torch.equal(after[frozen.name], before[frozen.name])
    assert frozen.count == 0
    assert all(not torch.equal(after[weight.name], before[weight.name]) for weight in rest)


@every_entry
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused_and_nothing_changes(entry, value):
    module, x = entry.make(), entry.input()
    loss_of(module, x).backward()
    *_, last = unitary_weights(module)
    spoil(last, value)
    gradients = {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}
    with unchanged(module), pytest.raises(RuntimeError, match=f"finite gradient.*{last.name!r}.*got NaN or infinity"):
        projunn_step(module)
    assert all(gradient_of(weight) is not None for weight in unitary_weights(module))
    for name, p in module.named_parameters():
        assert p.grad is None or torch.equal(p.grad.nan_to_num(), gradients[name].nan_to_num())


@every_entry
def test_a_gradient_that_is_not_finite_can_be_skipped(entry):
    module, x = entry.make(update=UpdateRule(nonfinite="skip")), entry.input()
    loss_of(module, x).backward()
    *rest, last = unitary_weights(module)
    spoil(last, torch.nan)
    before = matrices(module)
    projunn_step(module)
    after = matrices(module)
    assert torch.equal(after[last.name], before[last.name])
    assert gradient_of(last) is None
    assert all(not torch.equal(after[weight.name], before[weight.name]) for weight in rest)


@every_entry
def test_retract_repairs_and_says_what_it_cannot_repair(entry):
    module = entry.make()
    for p in module.parameters():
        p.data.mul_(1.2).add_(0.01 * torch.randn_like(p))
    assert unitarity_error_of(module) > 0.1
    module.requires_grad_(False)  # frozen ones are repaired too
    retract_(module)
    assert_unitary(module.eval())  # where a state dict looks at nothing
    *_, last = unitary_weights(module)
    next(iter(unitary_weights(module))).parameter.data.mul_(1.1)
    last.parameter.data.view(-1)[1] = torch.inf
    with unchanged(module), pytest.raises(ValueError, match=f"{last.name!r}, got NaN or infinity"):
        retract_(module)


@every_entry
def test_the_seed_of_torch_decides_the_weights(entry):
    def draw(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return snapshot(entry.make())

    assert same_tensors(draw(3), draw(3))
    assert not same_tensors(draw(3), draw(4))


@every_entry
def test_a_rank_beyond_the_size_is_that_of_the_size(entry):
    module, most = entry.make(update=UpdateRule(rank=9, lr=0.3)), entry.make(update=UpdateRule(rank=8, lr=0.3))
    most.load_state_dict(module.state_dict())
    for m in (module, most):
        step(m, entry.input())
    assert same_tensors(module.state_dict(), most.state_dict())
    for layer in units(module):
        with unchanged(layer), pytest.raises(ValueError, match=r"UpdateRule, such as .* got 'D'"):
            layer.update = "D"


@every_entry
def test_another_rule_can_be_assigned_in_mid_training(entry):
    module, x = entry.make(), entry.input()
    for rule in (UpdateRule("D", rank=2, sampler="power"), UpdateRule("T", rank=3, sampler="power"), UpdateRule("T")):
        step(module, x)
        for layer in units(module):
            layer.update = rule
        step(module, x)
        for weight in unitary_weights(module):
            assert weight.declared == rule
            assert (weight.previous is not None) == (rule.sampler == "power")
    assert_unitary(module)
    assert [int(weight.count) for weight in unitary_weights(module)] == [6] * len(matrices(module))


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.name != "sequential"], ids=lambda e: e.name)
def test_dtypes_that_are_not_floating_point_are_refused(entry):
    for dtype in (torch.int32, torch.bool):
        with pytest.raises(ValueError, match=f"real or complex floating point dtype, got {dtype}"):
            entry.build(dtype=dtype, device=None, update=UpdateRule())


@every_entry
def test_repr_tells_options_and_evaluates(entry):
    rule = UpdateRule("D", rank=2)
    text = repr(entry.make(update=rule))
    assert f"update={rule!r}" in text
    assert ("complex=True" in text) == entry.is_complex
    assert repr(entry.make(update=UpdateRule())).count("update=") == 0


@every_entry
def test_eval_mode_and_no_grad_change_nothing(entry):
    module, x = entry.make(), entry.input()
    with torch.no_grad():
        without = output_of(module, x)
    assert torch.equal(output_of(module.eval(), x), without)

"""Gradients of any kind before a step: the weights stay unitary, or the step is refused and nothing has changed."""

import copy
import itertools
import math

import pytest
import torch
from entries import BATCH, ENTRIES, N, output_of, spoil
from hostile import SPOILS, is_finite, one_spoilt, survived
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import LAYOUTS, laid_out, seeds
from torch import nn

from unitary_layers import UnitaryLinear, UpdateRule, projunn_step
from unitary_layers.projunn.sampling import LINEAR_SAMPLERS, SAMPLERS
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights
from unitary_layers.training.triggers.optimizer import DIRECTIONS, ProjUNN

DENSE = tuple(entry for entry in ENTRIES if not entry.factored)
FACTORED = tuple(entry for entry in ENTRIES if entry.factored)
NAMED = {entry.name: entry for entry in ENTRIES}
MOMENTA = st.sampled_from([None, 0.0, 0.9])
NOT_FINITE = (math.nan, math.inf, -math.inf)


@st.composite
def rules(draw: st.DrawFn, samplers: tuple[str, ...] = tuple(SAMPLERS)) -> UpdateRule:
    direction = draw(st.sampled_from(["spectral", "gradient"]))
    own = {} if direction == "gradient" else {"momentum": draw(MOMENTA)}
    return UpdateRule(
        draw(st.sampled_from("DT")),
        rank=draw(st.sampled_from([1, 2, 3])),
        sampler=draw(st.sampled_from(samplers)),
        lr=draw(st.sampled_from([0.0, 1e-300, 0.3, 1.0, 1e6, 1e30, 1e300, 10**30])),
        nonfinite=draw(st.sampled_from(["raise", "skip"])),
        direction=direction,
        **own,
    )


def stepped(module: nn.Module) -> bool:
    """Steps a module, which is unitary afterwards; whether the step was taken."""
    result = survived("gradients", lambda: projunn_step(module) or "stepped", module)
    assert_unitary(module)
    assert all(is_finite(tensor) for tensor in module.state_dict().values())
    return result is not None


@settings(max_examples=150)
@given(entry=st.sampled_from(DENSE), rule=rules(), data=st.data())
def test_a_gradient_of_any_scale_and_layout(entry, rule, data):
    module = entry.make(update=rule)
    for weight in unitary_weights(module):
        p = weight.parameter
        scale = data.draw(st.sampled_from([1.0, 1e-45, 1e-38, 1e-20, 1e10, 1e18, 1e30, 1e37, 1e38, *SPOILS]))
        g = torch.randn(p.shape, generator=torch.Generator().manual_seed(data.draw(seeds))) * scale
        layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
        g = laid_out(g, layout)
        survived("gradients", lambda p=p, g=g: setattr(p, "grad", g), module)
    stepped(module)


@settings(max_examples=100)
@given(entry=st.sampled_from(FACTORED), rule=rules(LINEAR_SAMPLERS), data=st.data())
def test_a_factored_gradient_of_any_scale(entry, rule, data):
    module, values = entry.make(update=rule), st.sampled_from([1.0, 1e-45, 1e-20, 1e10, 1e18, 1e30, 3e38, *SPOILS])
    x = entry.input() * data.draw(values)
    survived("gradients", lambda: (output_of(module, x).abs() * data.draw(values)).sum().backward())
    stepped(module)


@settings(max_examples=100)
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.complex64]), direction=st.sampled_from(DIRECTIONS))
def test_an_optimiser_keeps_nothing_of_a_step_that_is_refused(data, dtype, direction):
    rule = UpdateRule(nonfinite=data.draw(st.sampled_from(["raise", "skip"])))
    module = UnitaryLinear(N, N, bias=False, dtype=dtype, update=rule)
    optimizer = ProjUNN(module.parameters(), direction=direction, momentum=0.9, alpha=0.9)
    drawn = data.draw(st.sampled_from([1e-45, 1e-20, 1e10, 1e18, 1e19, 1e20, 1e30, 1e37, 1e38, 3e38, *SPOILS]))
    for scale in (1.0, drawn, 1.0):
        module.weight.grad = torch.randn(module.weight.shape) * scale
        before, count = copy.deepcopy(optimizer.state_dict()["state"]), int(module.weight_count)
        survived("gradients", optimizer.step, module)
        after = optimizer.state_dict()["state"].get(0, {})
        assert_unitary(module)
        assert all(is_finite(value) for value in after.values())
        if int(module.weight_count) == count:
            assert all(torch.equal(value, after[name]) for name, value in before.get(0, {}).items())
        module.weight.grad = None
    assert int(module.weight_count) > count


@pytest.mark.parametrize("name", ["linear", "linear-complex"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("value", NOT_FINITE)
def test_every_place_of_a_dense_gradient_is_looked_at(name, sampler, value):
    entry = NAMED[name]
    module = entry.make(update=UpdateRule(sampler=sampler))
    gradient = torch.ones_like(module.weight)
    for place in range(gradient.numel()):
        module.weight.grad = one_spoilt(gradient, place, value)
        assert not stepped(module)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("where", ["input", "delta"])
def test_every_place_of_the_factors_is_looked_at(where, value):
    module = UnitaryLinear(N, N, bias=False, gradient="factored")
    ones = torch.ones(BATCH, N)
    for place in range(ones.numel()):
        module.zero_grad()
        spoilt = one_spoilt(ones, place, value)
        x, delta = (spoilt, ones) if where == "input" else (ones, spoilt)
        module(x).backward(delta)
        assert not stepped(module)


@pytest.mark.parametrize("entry", FACTORED, ids=lambda e: e.name)
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_spoilt_factor_is_refused_by_the_step_and_by_the_optimiser(entry, value):
    for optimised in (False, True):
        module = entry.make()
        output_of(module, entry.input()).abs().sum().backward()
        for weight in unitary_weights(module):
            spoil(weight, value)
        call = ProjUNN(module.parameters()).step if optimised else module.projunn_step
        assert survived("gradients", lambda call=call: call() or "stepped", module) is None


def test_an_overflowing_step_names_the_weight_and_the_rate():
    module = UnitaryLinear(4, 4, update=UpdateRule(lr=1e300, direction="gradient"))
    module.weight.grad = torch.ones(4, 4)
    with pytest.raises(RuntimeError, match=r"'weight' at lr=1e\+300: expected an update .* infinity or overflow"):
        module.projunn_step()
    module.weight.grad = torch.eye(4).to_sparse()
    with pytest.raises(RuntimeError, match=r"dense gradient of the unitary weight 'weight', got torch.sparse_coo"):
        module.projunn_step()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("size", [1e8, 1e16, 1e30])
def test_a_step_of_any_length_leaves_a_unitary_weight(rank, size):
    for variant, dtype in itertools.product("DT", (torch.float32, torch.float64, torch.complex64)):
        module = UnitaryLinear(6, 6, dtype=dtype, update=UpdateRule(variant, rank=rank, lr=1.0))
        module.weight.grad = torch.randn_like(module.weight) * size
        assert stepped(module)


ABSURD = (-1.0, math.nan, math.inf, "1", None, 1j, [], 10**400)


@pytest.mark.parametrize("lr_scale", ABSURD, ids=lambda value: repr(value)[:9])
def test_an_absurd_lr_scale_is_refused(lr_scale):
    module = UnitaryLinear(4, 4)
    module.weight.grad = torch.ones(4, 4)
    assert survived("gradients", lambda: module.projunn_step(lr_scale=lr_scale) or "stepped", module) is None

"""What every layer promises of its precision: casts, autocast, bfloat16 models, compilation."""

import copy
import math

import pytest
import torch
from closeness import assert_rounding
from entries import (
    POWER,
    N,
    every_complex_entry,
    every_entry,
    every_real_entry,
    gradient_of,
    loss_of,
    matrices,
    output_of,
    same_tensors,
    step,
)
from torch import nn

from unitary_layers import UnitaryLinear, UpdateRule, projunn_step
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights

HALVES = [torch.float16, torch.bfloat16]
CASTS = [("cpu", half) for half in HALVES] + [("cuda", half) for half in HALVES if torch.cuda.is_available()]


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def all_dtypes(module: nn.Module) -> set[torch.dtype]:
    return {t.dtype for t in module.state_dict().values() if t.is_floating_point()}


@every_entry
def test_autocast_leaves_double_precision_alone(entry):
    module, x = entry.make(torch.float64), entry.input(torch.float64)
    y = output_of(module, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = output_of(module, x)
    assert z.dtype == y.dtype == x.dtype
    assert_rounding(z, y, n=N)


@every_entry
@pytest.mark.parametrize("cast", [lambda m: m.to(torch.float64), lambda m: m.double()], ids=["to", "double"])
def test_double_precision_is_taken_on(entry, cast):
    module = entry.make(update=POWER)
    step(module, entry.input())
    before = matrices(module)
    loss_of(module, entry.input()).backward()
    assert cast(module) is module
    assert all_dtypes(module) == {torch.float64}
    for name, matrix in matrices(module).items():
        assert_rounding(matrix.to(before[name].dtype), before[name], n=N)  # real and imaginary parts, both of them
    assert_unitary(module)  # to its new precision
    projunn_step(module)  # from a gradient that was cast too
    x = entry.input(torch.float64)
    for _ in range(3):
        step(module, x)
    assert output_of(module, x).dtype == x.dtype
    assert_unitary(module)


@every_entry
@pytest.mark.parametrize("origin", ["made", "loaded"])
def test_a_copy_of_what_was_cast_to_double_precision_has_nothing_to_report(entry, origin):
    module = entry.make()
    if origin == "loaded":
        module.load_state_dict(entry.make().state_dict())
    module.double()
    twin = entry.make(torch.float64)
    twin.load_state_dict(module.state_dict())
    for other in (module, twin, copy.deepcopy(module)):
        step(other, entry.input(torch.float64))  # a warning would be an error


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@every_entry
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_dtype_is_the_precision_of_a_complex_layer(entry, dtype):
    module, twin = entry.make(), entry.make()
    twin.load_state_dict(module.state_dict())
    before = {k: (id(t), t.dtype) for k, t in module.state_dict(keep_vars=True).items()}
    if entry.is_complex:
        assert same_tensors(module.to(dtype).state_dict(), twin.to(dtype.to_real()).state_dict())
        step(module, entry.input(dtype.to_real()))
        assert_unitary(module)
    elif entry.name != "sequential":  # of which torch's own layer comes first
        with pytest.raises(ValueError, match="expected a real dtype for a layer with real weights"):
            module.to(dtype)
        assert {k: (id(t), t.dtype) for k, t in module.state_dict(keep_vars=True).items()} == before


def test_a_cast_does_not_hide_what_something_else_has_written():
    module = UnitaryLinear(N, N)
    with torch.no_grad():
        module.weight.mul_(2)
    doubled = module.weight.detach().double()
    module.double()
    assert torch.equal(module.weight, doubled)
    with pytest.warns(UserWarning, match="written by something else"):
        module(torch.randn(2, N, dtype=torch.float64))
    module = UnitaryLinear(N, N)
    module.weight.data[0, 0] = math.nan  # unseen
    assert module.double().weight.isnan().any()


@every_entry
@pytest.mark.parametrize("half", HALVES, ids=["half", "bfloat16"])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=["from float32", "from float64"])
def test_unitary_weights_never_fall_below_float32(entry, half, wide):
    module = entry.make(wide, update=POWER)
    step(module, entry.input(wide))
    before = matrices(module)
    loss_of(module, entry.input(wide)).backward()
    module.half() if half == torch.float16 else module.bfloat16()
    for weight in unitary_weights(module):
        assert weight.parameter.dtype == weight.previous.dtype == gradient_of(weight).real.dtype == torch.float32
        assert torch.equal(weight.matrix, before[weight.name].to(weight.matrix.dtype))  # rounded to float32, no further
    assert_unitary(module)
    unitary = {id(weight.parameter) for weight in unitary_weights(module)}
    plain = {
        p.dtype
        for name, p in module.named_parameters()
        if id(p) not in unitary and not entry.is_complex and not name.startswith("log_")  # phases and decays
    }
    assert plain <= {half}
    projunn_step(module)
    assert_unitary(module)
    assert not same_tensors(matrices(module), before)
    module.to(torch.float32)
    assert_unitary(module)


@every_real_entry
@pytest.mark.parametrize("made", ["cast", "constructed"])
@pytest.mark.parametrize("half", HALVES, ids=["half", "bfloat16"])
def test_a_model_in_half_precision_trains(entry, half, made):
    module = entry.make().to(half) if made == "cast" else entry.make(half)
    x = entry.input(half)
    before = matrices(module)
    y = output_of(module, x)
    assert y.dtype == half
    reference = copy.deepcopy(module).float()
    assert_rounding(y, output_of(reference, x.float()).to(half), n=N, c=1)
    losses = [step(module, x) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert_unitary(module)
    assert all(m.dtype.to_real() == torch.float32 for m in matrices(module).values())
    assert all(not torch.equal(after, before[name]) for name, after in matrices(module).items())


@every_entry
def test_a_complex_layer_cast_to_half_precision_still_runs(entry):
    module = entry.make().bfloat16()
    x = entry.input(torch.float32 if entry.is_complex else torch.bfloat16)
    assert output_of(module, x).dtype == x.dtype
    step(module, x)
    assert_unitary(module)


@every_complex_entry
@pytest.mark.parametrize("autocast", [False, True])
def test_a_complex_layer_refuses_real_numbers_of_half_precision(entry, autocast):
    """Of its weights the real part alone would be left."""
    module, x = entry.make(), entry.input().real.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), pytest.raises((RuntimeError, ValueError)):
        output_of(module, x)


@every_entry
@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize(("device", "half"), CASTS, ids=str)
def test_autocast(entry, cache, device, half):
    module, x = entry.make(device=device), entry.input().to(device)
    expected, before = output_of(module, x), matrices(module)
    with torch.autocast(device, dtype=half, cache_enabled=cache):
        y = output_of(module, x)
        loss = loss_of(module, x)
    if entry.is_complex:  # autocast leaves complex numbers alone
        assert torch.equal(y, expected)
    else:
        assert_rounding(y, expected.to(half), n=N, c=1)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters() if p.grad is not None)
    with torch.autocast(device, dtype=half, enabled=cache):  # the step is exact wherever it is taken
        projunn_step(module)
    assert_unitary(module)
    assert all(not torch.equal(after, before[name]) for name, after in matrices(module).items())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's, at a graph break
@every_entry
def test_compiled_forward_and_gradients_are_the_same(entry, fresh_compiler):
    rule = UpdateRule(lr=0.3, direction="gradient")  # a spectral step of rounding alone is as long as any
    module, x = entry.make(update=rule), entry.input()
    twin = copy.deepcopy(module)
    backend = "aot_eager" if entry.name in ("linear-factored", "rnn-factored") else "eager"  # which is the faster
    compiled = torch.compile(module, backend=backend, fullgraph=entry.name != "rnn-module-factored")
    for _ in range(2):
        expected = output_of(twin, x)
        assert_rounding(output_of(compiled, x), expected, n=N)
        expected.abs().square().sum().backward()
        output_of(compiled, x).abs().square().sum().backward()
        for mine, theirs in zip(module.parameters(), twin.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None)
            if mine.grad is not None:
                assert_rounding(mine.grad, theirs.grad, n=N * N)
        projunn_step(compiled)  # found through the wrapper, and seen by the next call
        projunn_step(twin)
        module.zero_grad()
        twin.zero_grad()
        assert_unitary(module)
    with torch.no_grad():  # in one graph in evaluation too
        assert_rounding(output_of(compiled.eval(), x), output_of(module.eval(), x), n=N)

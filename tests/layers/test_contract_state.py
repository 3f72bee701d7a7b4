"""What every layer promises of its state: saved, loaded, copied, averaged, resumed and built on the meta device."""

import copy
import io
import pickle

import pytest
import torch
from closeness import without_our_buffers
from entries import (
    ENTRIES,
    POWER,
    N,
    assert_trains,
    every_entry,
    gradient_of,
    loss_of,
    matrices,
    output_of,
    same_tensors,
    snapshot,
    step,
    trained,
)
from safetensors.torch import load_file, load_model, save_file, save_model
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unitary_layers import (
    OrthogonalConv2d,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
    UpdateRule,
    retract_,
    unitarity_error_of,
)
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights


@pytest.mark.parametrize("cls", [UnitaryLinear, UnitaryRNN, UnitaryRNNCell])
def test_a_layer_pickled_by_an_older_release_goes_on(cls):
    layer, x = cls(3, N), torch.randn(5, 3)
    state = layer.__getstate__()
    for later in ("quantiser", "_lazy", "return_sequence"):
        state.pop(later, None)
    older = cls.__new__(cls)
    older.__setstate__(state)
    assert repr(older) == repr(layer)
    output = older(x)
    loss = (output[0] if cls is UnitaryRNN else output).sum()
    loss.backward()
    older.projunn_step()
    assert_unitary(older)


@every_entry
@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_state_dict_round_trip(entry, assign):
    source, target = trained(entry), entry.make(update=POWER)
    state = snapshot(source)
    target.load_state_dict(state, strict=True, assign=assign)
    assert same_tensors(snapshot(target), snapshot(source))
    assert torch.equal(output_of(target, entry.input()), output_of(source, entry.input()))
    assert all(w.parameter.is_contiguous() and w.parameter.requires_grad for w in unitary_weights(target))
    assert_trains(target, entry)


@every_entry
def test_loading_leaves_the_given_state_dict_alone(entry):
    state = {k: v for k, v in snapshot(trained(entry)).items() if not k.endswith(("_count", "_previous"))}
    kept = {k: v.clone() for k, v in state.items()}
    target = entry.make(update=POWER)
    target.load_state_dict(state)
    for _ in range(3):
        step(target, entry.input())
    assert same_tensors(state, kept)


@every_entry
def test_safetensors(entry, tmp_path):
    source = trained(entry)
    save_file(source.state_dict(), tmp_path / "state.safetensors")
    save_model(source, str(tmp_path / "model.safetensors"))
    for name in ("state", "model"):
        target = entry.make(update=POWER)
        if name == "state":
            target.load_state_dict(load_file(tmp_path / "state.safetensors"))
        else:
            load_model(target, tmp_path / "model.safetensors")
        assert same_tensors(snapshot(target), snapshot(source))
        assert torch.equal(output_of(target, entry.input()), output_of(source, entry.input()))
        assert_trains(target, entry)


def saved_whole(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@every_entry
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_whole],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_is_unitary_by_itself(entry, copied):
    source = trained(entry)
    loss_of(source, entry.input()).backward()
    before = snapshot(source)
    twin = copied(source)
    twin.zero_grad()
    assert same_tensors(snapshot(twin), before)
    assert torch.equal(output_of(twin, entry.input()), output_of(source, entry.input()))
    assert_trains(twin, entry)
    assert same_tensors(snapshot(source), before)
    assert all(gradient_of(w) is not None for w in unitary_weights(source))
    source.zero_grad()
    assert_trains(source, entry)


@every_entry
@pytest.mark.parametrize(
    "rule", [UpdateRule(lr=0.3), POWER, UpdateRule("D", sampler="column", lr=0.3)], ids=lambda r: r.sampler
)
def test_a_resumed_run_continues_bit_for_bit(entry, rule):
    if entry.factored and rule.sampler == "column":
        rule = UpdateRule("D", sampler="lsi", lr=0.3, direction="gradient")
    whole = entry.make(update=rule)
    first = copy.deepcopy(whole)
    for _ in range(6):
        step(whole, entry.input())
    for _ in range(3):
        step(first, entry.input())
    second = entry.make(update=rule)
    assert not same_tensors(matrices(second), matrices(first))
    second.load_state_dict(snapshot(first))
    for _ in range(3):
        step(second, entry.input())
    assert same_tensors(snapshot(second), snapshot(whole))
    assert all(w.count == 6 for w in unitary_weights(second))


@every_entry
def test_moments_of_an_older_release_are_left_out(entry):
    """A rule of it kept those of the rows and columns of a gradient, which none does any more."""
    module, source = entry.make(), entry.make()
    moments = {}
    for name, weight in source.named_parameters():
        if f"{name}_count" in dict(source.named_buffers()):
            moments |= {f"{name}_{side}_moments": weight.detach().new_ones(2) for side in ("row", "column")}
    assert moments
    module.load_state_dict(snapshot(source) | moments)
    assert same_tensors(snapshot(module), snapshot(source))


@every_entry
def test_meta_device_then_reset_parameters(entry):
    module = entry.make(device="meta", update=POWER)
    assert all(t.is_meta for t in module.state_dict().values())
    module.to_empty(device="cpu")
    for p in [*module.parameters(), *module.buffers()]:
        p.data.fill_(3)  # what an empty tensor may hold
    for m in module.modules():
        if hasattr(m, "reset_parameters"):
            m.reset_parameters()
    assert_unitary(module)
    assert all(w.count == 0 for w in unitary_weights(module))
    assert_trains(module, entry)


@every_entry
@pytest.mark.parametrize("counters", [True, False], ids=["our state", "without counters"])
def test_meta_device_then_assign(entry, counters):
    source, module = trained(entry), entry.make(device="meta", update=POWER)
    module.load_state_dict(snapshot(source) if counters else without_our_buffers(copy.deepcopy(source)), assign=True)
    assert not any(t.is_meta for t in module.state_dict().values())
    assert torch.equal(output_of(module, entry.input()), output_of(source, entry.input()))
    assert [int(w.count) for w in unitary_weights(module)] == [3 if counters else 0] * len(matrices(source))
    assert_trains(module, entry)


CONVOLUTIONS = [(OrthogonalConv2d, {"input_size": 4}), (OrthogonalConv2d, {"kernel_size": 3})]


@pytest.mark.parametrize(
    ("layer", "options"),
    [(layer, {"dtype": t}) for layer in (UnitaryLinear, UnitaryRNN, UnitaryRNNCell) for t in (None, torch.complex64)]
    + CONVOLUTIONS,
    ids=str,
)
def test_skip_init(layer, options):
    module = nn.utils.skip_init(layer, 4, 4, **options)
    assert not any(t.is_meta for t in module.state_dict().values())
    module.reset_parameters()
    assert_unitary(module)


@every_entry
@pytest.mark.parametrize("kind", ["mean", "ema", "ema with buffers", "timm"])
def test_a_weight_average_is_retracted(entry, kind):
    module = entry.make(update=UpdateRule(lr=3.0))
    make = {
        "mean": lambda m: AveragedModel(m),
        "ema": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5)),
        "ema with buffers": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True),
        "timm": lambda m: ModelEmaV3(m, decay=0.5),
    }
    average = make[kind](module)
    for _ in range(5):
        step(module, entry.input())
        average.update(module) if kind == "timm" else average.update_parameters(module)
    before = snapshot(module)
    assert unitarity_error_of(average) > 10 * unitarity_error_of(module)
    retract_(average)
    assert_unitary(average)
    assert list(matrices(average)) == [f"module.{name}" for name in matrices(module)]
    assert torch.isfinite(output_of(average.module, entry.input())).all()
    assert same_tensors(snapshot(module), before)


def test_the_list_has_every_layer():
    kinds = {type(m) for entry in ENTRIES for m in entry.make().modules()}
    assert {UnitaryLinear, UnitaryRNN, UnitaryRNNCell, nn.Sequential} <= kinds


@pytest.mark.parametrize(
    "make",
    [lambda: UnitaryLinear(N, N, bias=False), lambda: OrthogonalConv2d(N, N, 3, bias=False)],
    ids=["linear", "conv"],
)
def test_no_bias_is_a_parameter_that_is_none_as_in_torch(make):
    module = make()
    assert "bias" in module._parameters
    module.bias = nn.Parameter(torch.ones(N))  # so that one can be given later
    assert "bias" in module.state_dict()
    module.bias = None
    assert "bias" not in module.state_dict()
    with pytest.raises(TypeError, match="cannot assign"):
        module.bias = torch.ones(N)

"""What every layer promises when what is loaded is not a unitary weight: repaired with a warning, or refused."""

import io
from dataclasses import replace

import pytest
import torch
from entries import POWER, N, assert_trains, every_entry, matrices, output_of, same_tensors, snapshot, step, trained
from torch import Tensor, nn

from unitary_layers import (
    OrthogonalConv2d,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
    UpdateRule,
    haar_unitary,
    nearest_unitary,
)
from unitary_layers.layers.base.loading import STATE_VERSION
from unitary_layers.layers.base.module import UnitaryModule
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights


def rounded(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict with all floating point numbers rounded to bfloat16, in this dtype."""
    return {k: v.bfloat16().to(dtype) if v.is_floating_point() else v for k, v in snapshot(module).items()}


@every_entry
@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_a_rounded_weight_is_retracted_with_a_warning(entry, assign):
    source, target = trained(entry), entry.make(update=POWER)
    with pytest.warns(UserWarning, match="is not unitary") as caught:
        target.load_state_dict(rounded(source, torch.float32), assign=assign)
    messages = [str(warning.message) for warning in caught]
    for (name, matrix), message in zip(matrices(source).items(), messages, strict=True):
        allowed = 10 * (max(matrix.shape[-2:]) + 1) * torch.finfo(torch.float32).eps
        assert f"the loaded weight {name!r} is not unitary: expected |W^H W - I|_F <= {allowed:.1e}, got " in message
    assert_retracted(target, source)
    assert_trains(target, entry)


@every_entry
@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_a_weight_in_half_precision_is_retracted_in_silence(entry, assign):
    """It is unitary up to the rounding of the precision that it comes in, as files of half the size hold it."""
    source, target = trained(entry), entry.make(update=POWER)
    target.load_state_dict(rounded(source, torch.bfloat16), assign=assign)  # warnings are errors
    assert_retracted(target, source)
    assert_trains(
        target, entry, torch.bfloat16 if assign else torch.float32
    )  # assign takes the dtype of what is loaded


def assert_retracted(target: nn.Module, source: nn.Module) -> None:
    """The weights are unitary, and as near to those of the source as what was rounded to bfloat16 is."""
    assert_unitary(target)
    for name, matrix in matrices(target).items():
        distance = torch.linalg.matrix_norm(matrix - matrices(source)[name])
        assert (distance <= 2 * matrix.size(-1) * torch.finfo(torch.bfloat16).eps).all()
        assert matrix.is_contiguous()


def test_a_wide_weight_in_half_precision_is_retracted_though_its_tolerance_is_large():
    layer = UnitaryLinear(1024, 32)
    layer.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in layer.state_dict().items()})
    assert layer.unitarity_error() < 10 * 32 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_a_weight_in_half_precision_that_was_never_unitary_is_reported(half):
    state = UnitaryLinear(8, 8).state_dict() | {"weight": torch.ones(8, 8, dtype=half)}
    with pytest.warns(UserWarning, match="'weight' is not unitary"):
        UnitaryLinear(8, 8).load_state_dict(state)


@every_entry
def test_a_weight_of_lower_precision_is_refined_in_silence(entry):
    """It is unitary in the precision that it comes in; nobody has spoilt it."""
    source, target = trained(entry), entry.make(torch.float64, update=POWER)
    before = matrices(source)
    target.load_state_dict(source.state_dict())  # warnings are errors
    assert_unitary(target)
    for name, matrix in matrices(target).items():
        allowed = 10 * (matrix.size(-1) + 1) * torch.finfo(torch.float32).eps
        assert torch.allclose(matrix, before[name].to(matrix.dtype), rtol=0, atol=allowed)
    assert_trains(target, entry, torch.float64)


def saved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_entry
def test_a_state_dict_tells_its_version_and_a_newer_one_is_refused(entry):
    source, target = trained(entry), trained(entry)
    state = saved(source.state_dict())
    names = [name for name, m in source.named_modules() if isinstance(m, UnitaryModule)]
    assert names
    assert all(state._metadata[name]["version"] == STATE_VERSION for name in names)
    target.load_state_dict(state)
    step(target, entry.input())
    for name in names:
        state._metadata[name]["version"] = STATE_VERSION + 1
        module = target.get_submodule(name)
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        before = [t.clone() for t in own]
        message = f"dict of version {STATE_VERSION} or older, got version {STATE_VERSION + 1}, which a later"
        with pytest.raises(RuntimeError, match=message) as refusal:
            target.load_state_dict(state)
        assert f"{name}.{type(module).__name__}".lstrip(".") in str(refusal.value)
        assert all(torch.equal(t, kept) for t, kept in zip(own, before, strict=True))
        state._metadata[name]["version"] = STATE_VERSION


@every_entry
def test_a_state_dict_without_a_version_is_loaded(entry):
    source, target = trained(entry), entry.make(update=POWER)
    target.load_state_dict(dict(saved(source.state_dict())))  # no metadata, as from safetensors
    assert same_tensors(snapshot(target), snapshot(source))


@every_entry
@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_a_weight_with_nan_is_not_loaded(entry, assign):
    source, target = trained(entry), trained(entry)
    state, before = snapshot(source), matrices(target)
    *_, last = matrices(source)
    state[last].view(-1)[2] = torch.nan
    with pytest.raises(RuntimeError, match=f"finite unitary weight {last!r}, got NaN or infinity; it was not loaded"):
        target.load_state_dict(state, assign=assign)
    assert torch.equal(matrices(target)[last], before[last])
    assert_trains(target, entry)


@every_entry
def test_a_layer_made_where_meta_is_the_default_device(entry):
    """As libraries make a model without data: nothing that it computes for itself may be without data too."""
    source, x = entry.make(), entry.input()
    with torch.device("meta"):
        target = entry.make()
    assert all(parameter.is_meta for parameter in target.parameters())
    target.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(output_of(target, x), output_of(source, x))


@every_entry
def test_a_layer_of_the_meta_device_whose_tensors_are_assigned_one_by_one(entry):
    """As libraries fill a model that they have made on the meta device; buffers that no file holds get any memory."""
    source, target, x = entry.make(), entry.make(device="meta"), entry.input()
    state = source.state_dict()
    for name, tensor in [*target.named_parameters(), *target.named_buffers()]:
        owner, _, leaf = name.rpartition(".")
        value = state.get(name, torch.empty_like(tensor, device="cpu"))
        value = value.clone() if name in state else value.fill_(99)
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(target.get_submodule(owner), leaf, nn.Parameter(value) if is_parameter else value)
    with torch.no_grad():
        assert torch.equal(output_of(target, x), output_of(source, x))


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (lambda: UnitaryLinear(8, 8), lambda: nn.Linear(8, 8), ["weight"]),
        (lambda: UnitaryLinear(8, 3), lambda: nn.Linear(8, 3), ["weight"]),
        (lambda: UnitaryLinear(3, 8), lambda: nn.Linear(3, 8), ["weight"]),
        (lambda: UnitaryRNN(3, 8, 2), lambda: nn.RNN(3, 8, 2), ["weight_hh_l0", "weight_hh_l1"]),
        (lambda: UnitaryRNNCell(3, 8), lambda: nn.RNNCell(3, 8), ["weight_hh"]),
    ],
    ids=["linear", "wide", "tall", "rnn", "cell"],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_of_torchs_layers_are_retracted_with_a_warning(ours, theirs, names, device):
    state = theirs().state_dict()
    with torch.device(device):
        module = ours()
    with pytest.warns(UserWarning, match=r"is not unitary: expected .* got \d\.\de") as caught:
        module.load_state_dict(state, strict=True, assign=device == "meta")
    for name, warning in zip(names, caught, strict=True):
        assert f"{name!r}" in str(warning.message)
        moved = (nearest_unitary(state[name]) - state[name]).norm() / state[name].norm()
        assert f"|W' - W| / |W| = {moved:.1e} away" in str(warning.message)
    assert_unitary(module)
    missing, unexpected = theirs().load_state_dict(module.state_dict(), strict=False)
    assert not missing
    assert set(unexpected) == {f"{name}_count" for name in names}
    for name, value in module.state_dict().items():
        if name in names:
            assert torch.equal(value, nearest_unitary(state[name]))
        elif name in state:
            assert torch.equal(value, state[name])
    assert list(matrices(module)) == names
    assert all(w.count == 0 for w in unitary_weights(module))


@every_entry
@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_a_column_major_weight_is_loaded_row_major(entry, assign):
    source, target = trained(entry), entry.make(update=POWER)
    state = snapshot(source)
    for weight in unitary_weights(source):
        rows, columns = (-3, -2) if weight.is_complex else (-2, -1)
        state[weight.name] = state[weight.name].transpose(rows, columns).contiguous().transpose(rows, columns)
        assert not state[weight.name].is_contiguous()
    target.load_state_dict(state, assign=assign)
    assert all(weight.parameter.is_contiguous() for weight in unitary_weights(target))
    assert_trains(target, entry)


@every_entry
def test_a_weight_of_another_shape_is_torchs_error(entry):
    source, target = trained(entry), entry.make(update=POWER)
    state = snapshot(source)
    *_, last = matrices(source)
    state[last] = state[last][:-1, :-1].contiguous()
    with pytest.raises(RuntimeError, match=f"size mismatch for {last}"):
        target.load_state_dict(state)
    del state[last]
    with pytest.raises(RuntimeError, match=rf'Missing key.*"{last}"'):
        target.load_state_dict(state)


@every_entry
def test_a_state_of_another_sampler_or_rank_is_loaded(entry):
    source, state = trained(entry), snapshot(trained(entry))
    for rule in (replace(POWER, rank=3), replace(POWER, sampler="lsi"), POWER):
        target = entry.make(update=rule)
        target.load_state_dict(state, strict=True)
        assert matrices(target).keys() == matrices(source).keys()
        assert_trains(target, entry)
        state = snapshot(target)


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers_are_loaded_as_pairs(dtype, assign):
    linear = nn.Linear(N, N, dtype=torch.complex128)
    with torch.no_grad():
        linear.weight.copy_(haar_unitary(N, dtype=torch.complex128))
    state = {k: v.to(dtype).conj() for k, v in linear.state_dict().items()}  # lazily conjugate
    module = UnitaryLinear(N, N, dtype=torch.complex64)
    module.load_state_dict(state, strict=True, assign=assign)
    assert module.weight.dtype == (dtype.to_real() if assign else torch.float32)
    for name, value in state.items():
        found = module.value(name).detach().to(torch.complex128)
        torch.testing.assert_close(found, value.to(torch.complex128), rtol=0, atol=N * torch.finfo(torch.float32).eps)


def test_complex_numbers_are_refused_for_real_weights():
    module = UnitaryLinear(N, N)
    with pytest.raises(RuntimeError, match="expected a dense real unitary weight 'weight'"):
        module.load_state_dict({"weight": haar_unitary(N, dtype=torch.complex64)}, strict=False)
    conv = OrthogonalConv2d(2, 2, input_size=4)
    state = conv.state_dict() | {"weight_pairs": torch.view_as_complex(conv.weight_pairs.detach())}
    assert not any(conv.load_state_dict(state))


@pytest.mark.parametrize(
    "build",
    [
        lambda **o: UnitaryLinear(3, 7, **o),
        lambda **o: UnitaryLinear(7, 3, **o),
        lambda **o: OrthogonalConv2d(3, 5, 3, **o),
        lambda **o: OrthogonalConv2d(2, 3, input_size=(3, 4), **o),
    ],
)
def test_squares_of_the_first_format_are_cut_to_what_is_used(build):
    source = build(update=UpdateRule(momentum=0.9))
    for weight in unitary_weights(source):
        for state in weight.memory or ():
            state.normal_()
    old = saved(source.state_dict())
    for weight in unitary_weights(source):
        n = max(weight.shape)
        if weight.shape[0] == weight.shape[1]:
            continue
        for name in (weight.name, f"{weight.name}_momentum"):
            matrix = weight.as_matrix(old[name])
            square = torch.full((*matrix.shape[:-2], n, n), 7.0, dtype=matrix.dtype)
            square[..., : weight.shape[0], : weight.shape[1]] = matrix
            old[name] = torch.view_as_real(square) if weight.is_complex else square
    target = build(update=UpdateRule(momentum=0.9))
    target.load_state_dict(old)
    assert same_tensors(snapshot(target), snapshot(source))

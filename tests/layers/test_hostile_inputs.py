"""Inputs of any shape, dtype, layout and value to every layer, and batches of nothing: as torch's layers take them."""

import pytest
import torch
from entries import ENTRIES, Entry, every_entry, output_of, snapshot, unchanged
from hostile import SPOILS, is_finite, one_spoilt, survived
from strategies import LAYOUTS, OBJECTS, STORED, laid_out
from torch import nn

from unitary_layers import (
    GroupSort,
    HadamardLinear,
    HadamardRNN,
    ModReLU,
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConv3d,
    StiefelConv2d,
    StiefelConvTranspose2d,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
    projunn_step,
)
from unitary_layers.testing import assert_unitary


def inputs(entry: Entry) -> list[object]:
    """What a layer may be given, from what it wants."""
    x = entry.input()
    shapes = [x[:0], x[:, :0], x[..., :0], x.flatten(), x.flatten()[0], x[None], x[None, None], x[0], x.new_zeros(0)]
    shapes += [torch.cat([x, x[..., :1]], -1), torch.cat([x, x[:, :1]], 1)]
    values = [one_spoilt(x, 3, value) for value in SPOILS] + [torch.full_like(x, value) for value in SPOILS]
    dtypes = [x.real.to(d) if x.is_complex() and not d.is_complex else x.to(d) for d in STORED if d != torch.complex32]
    return [*OBJECTS, *shapes, *values, *dtypes, *(laid_out(x, layout) for layout in LAYOUTS), x.real.numpy()]


@every_entry
def test_an_input_is_taken_or_refused_and_the_weights_stay_unitary(entry):
    module = entry.make()
    for x in inputs(entry):
        module.zero_grad()
        with unchanged(module):
            survived("inputs", lambda x=x: backward(module, x))
        survived("gradients", lambda: projunn_step(module), module)
        assert_unitary(module)
        assert all(is_finite(tensor) for tensor in module.state_dict().values())


def backward(module: nn.Module, x: object) -> None:
    """Forward, with an output that is finite where the input is and not huge, and backward."""
    y = output_of(module, x)
    if is_finite(x) and (x.numel() == 0 or x.abs().max() < 1e30):
        assert y.isfinite().all()
    y.abs().square().sum().backward()


@pytest.mark.parametrize("layer", [GroupSort(2), ModReLU(4), ModReLU(4, dtype=torch.complex64)], ids=repr)
def test_activations_take_or_refuse_an_input(layer):
    for x in inputs(Entry("activation", lambda: layer, (3, 4))):
        if getattr(x, "dtype", None) in (torch.float8_e4m3fn, torch.bool, torch.qint8, torch.quint8):
            continue  # in which torch's activations do not compute either, with the same NotImplementedError
        survived("inputs", lambda x=x: layer(x), layer)


PAIRS = {
    "linear": (UnitaryLinear(5, 7), nn.Linear(5, 7), (0, 5)),
    "linear, factored": (UnitaryLinear(5, 7, gradient="factored"), nn.Linear(5, 7), (2, 0, 5)),
    "rnn": (UnitaryRNN(5, 7, 2, bidirectional=True), nn.RNN(5, 7, 2, bidirectional=True), (3, 0, 5)),
    "rnn, factored": (UnitaryRNN(5, 7, gradient="factored"), nn.RNN(5, 7), (3, 0, 5)),
    "rnn of a module": (UnitaryRNN(5, 7, nonlinearity=nn.Tanh()), nn.RNN(5, 7), (3, 0, 5)),
    "cell": (UnitaryRNNCell(5, 7), nn.RNNCell(5, 7), (0, 5)),
    "cell, factored": (UnitaryRNNCell(5, 7, gradient="factored"), nn.RNNCell(5, 7), (0, 5)),
    "hadamard": (HadamardLinear(8), nn.Linear(8, 8), (0, 8)),
    "hadamard rnn": (HadamardRNN(5, 8, 2, bidirectional=True), nn.RNN(5, 8, 2, bidirectional=True), (3, 0, 5)),
    "hadamard rnn, wide": (HadamardRNN(5, 512), nn.RNN(5, 512), (3, 0, 5)),
    "conv": (OrthogonalConv2d(4, 8, 3), nn.Conv2d(4, 8, 3, padding=1), (0, 4, 6, 6)),
    "conv, full": (OrthogonalConv2d(4, 4, input_size=6), nn.Conv2d(4, 4, 3, padding=1), (0, 4, 6, 6)),
    "conv, full, fft": (
        OrthogonalConv2d(4, 4, input_size=6, transform="fft"),
        nn.Conv2d(4, 4, 3, padding=1),
        (0, 4, 6, 6),
    ),
    "conv, factored": (
        OrthogonalConv2d(4, 4, input_size=6, transform="fft", gradient="factored"),
        nn.Conv2d(4, 4, 3, padding=1),
        (0, 4, 6, 6),
    ),
    "stiefel": (StiefelConv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1), (0, 4, 6, 6)),
    "stiefel, transposed": (StiefelConvTranspose2d(4, 8, 3), nn.ConvTranspose2d(4, 8, 3), (0, 4, 6, 6)),
    "conv 1d": (OrthogonalConv1d(4, 4, 3), nn.Conv1d(4, 4, 3, padding=1), (0, 4, 6)),
    "conv 3d": (OrthogonalConv3d(4, 4, 3), nn.Conv3d(4, 4, 3, padding=1), (0, 4, 6, 6, 6)),
}


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS.values(), ids=PAIRS)
def test_an_empty_batch_goes_through_as_through_torchs_layer(ours, theirs, shape):
    before = snapshot(ours)
    results = []
    for layer in (ours, theirs):
        x = torch.zeros(shape, requires_grad=True)
        outputs = layer(x) if isinstance(layer(x), tuple) else (layer(x),)
        sum(y.sum() for y in outputs).backward()
        assert x.grad.shape == x.shape
        results.append([(y.shape, y.dtype) for y in outputs])
    assert results[0] == results[1]
    projunn_step(ours)
    for name, value in snapshot(ours).items():
        assert name.endswith(("_count", "_previous")) or torch.equal(value, before[name])


@every_entry
def test_a_layer_without_gradients_does_not_step(entry):
    module = entry.make()
    for p in module.parameters():
        p.requires_grad_(False)
    before = snapshot(module)
    with torch.no_grad():
        output_of(module, entry.input())
    projunn_step(module)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(module).items())


@pytest.mark.parametrize(
    "name", ["conv-full", "conv-full-fft", "conv-local", "conv-1d", "conv-3d-local", "stiefel", "stiefel-transposed"]
)
def test_a_convolution_tells_the_dtype_and_device_it_wants(name):
    entry = next(entry for entry in ENTRIES if entry.name == name)
    for x, got in ((entry.input().long(), "int64 on cpu"), (entry.input().to("meta"), "float32 on meta")):
        with pytest.raises(RuntimeError, match=f"input of torch.float32 on cpu as the weight, got torch.{got}"):
            entry.make()(x)


@every_entry
def test_what_is_no_tensor_is_a_type_error(entry):
    layer = entry.make()
    layer = layer[2] if entry.name == "sequential" else layer
    with pytest.raises(TypeError, match=r"expected \w+ of \w+ to be a tensor, got list"):
        layer([[1.0]])


def test_a_sparse_input_goes_through_a_dense_linear_layer_alone():
    x = torch.eye(4).to_sparse()
    layer: nn.Module = UnitaryLinear(4, 4)
    assert torch.equal(layer(x), layer(x.to_dense()))
    with pytest.raises(ValueError, match=r"dense tensor, got torch\.float32 of layout torch\.sparse_coo"):
        UnitaryLinear(4, 4, gradient="factored")(x)

"""What every layer promises of graphs to be run elsewhere: torch.export, and ONNX as its own evaluator reads it."""

import io

import pytest
import torch
from closeness import assert_rounding
from entries import BATCH, ENTRIES, N, every_entry, gradient_of, output_of, unchanged
from onnx.reference import ReferenceEvaluator
from torch import nn

from unitary_layers import OrthogonalConv2d, UnitaryRNN
from unitary_layers.training import unitary_weights

BY_NAME = {entry.name: entry for entry in ENTRIES}


def batch_dim(entry) -> int:
    return entry.shape.index(BATCH)


@every_entry
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_exported_layer_takes_any_batch(entry, training):
    module, x = entry.make().train(training), entry.input()
    dims = {batch_dim(entry): torch.export.Dim("batch", min=2)}
    with unchanged(module):
        program = torch.export.export(module, (x,), dynamic_shapes=(dims,))
    assert all(gradient_of(weight) is None for weight in unitary_weights(module))
    for inputs in (x, torch.cat([x, 2 * x], dim=batch_dim(entry))):
        assert_rounding(output_of(program.module(), inputs), output_of(module, inputs), n=N)


@pytest.mark.parametrize("name", ["linear-complex", "rnn-modrelu", "conv-full", "conv-full-fft", "conv-local"])
def test_an_exported_layer_survives_a_file(name):
    module, x = BY_NAME[name].make(), BY_NAME[name].input()
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,)), buffer)
    buffer.seek(0)
    assert_rounding(output_of(torch.export.load(buffer).module(), x), output_of(module, x), n=N)


def test_strict_export_is_the_same():
    module, x = BY_NAME["rnn-factored"].make(), BY_NAME["rnn-factored"].input()
    program = torch.export.export(module, (x,), strict=True)
    assert_rounding(output_of(program.module(), x), output_of(module, x), n=N)


def in_onnx(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output of the module's ONNX graph, all of its results flattened."""
    graph = torch.onnx.export(module.eval(), (x,), dynamo=True, verbose=False).model_proto
    results = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: x.numpy()})
    return torch.cat([torch.as_tensor(result).flatten() for result in results])


@pytest.mark.parametrize(
    "name", ["linear", "rnn-two-layers-both-ways", "cell", "conv-full", "conv-full-fft", "conv-local"]
)
def test_onnx(name):
    module, x = BY_NAME[name].make(), BY_NAME[name].input()
    assert_rounding(in_onnx(module, x), output_of(module, x).flatten(), n=10 * N)


def test_torch_refuses_complex_numbers_in_onnx():
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="complex-valued input"):
        in_onnx(BY_NAME["linear-complex"].make(), BY_NAME["linear-complex"].input())


@pytest.mark.parametrize("options", [{"kernel_size": 3}, {"input_size": (5, 4)}], ids=["local", "full"])
def test_the_kernel_is_an_ordinary_convolution(options):
    """What needs neither our layers nor a Fourier transform: torch's own convolution with the kernel."""
    layer, x = OrthogonalConv2d(N, N, **options), torch.randn(BATCH, N, 5, 4)
    kernel = layer.spatial_kernel()
    if layer.kernel_size is None:
        x_padded = nn.functional.pad(x, [0, 3, 0, 4], mode="circular")
        y = nn.functional.conv2d(x_padded, kernel, layer.bias)
    else:
        plain = nn.Conv2d(N, N, 3, padding="same", padding_mode="circular")
        plain.load_state_dict({"weight": kernel, "bias": layer.bias})
        y = plain(x)
    assert_rounding(y, layer(x), n=10 * N)


def test_a_sequence_is_as_long_as_that_of_the_export():
    layer = UnitaryRNN(3, N)
    program = torch.export.export(layer, (torch.randn(5, BATCH, 3),))
    assert not any("unitary_layers" in str(node.target) for node in program.graph.nodes)  # it runs without us
    with pytest.raises(AssertionError, match="input"):
        program.module()(torch.randn(6, BATCH, 3))


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize(
    "options",
    [{"nonlinearity": "modrelu"}, {"nonlinearity": "identity", "return_sequence": False}],
    ids=["all", "last"],
)
def test_a_sequence_of_any_length_is_one_operator_of_the_export(options, strict):
    layer = UnitaryRNN(3, N, bidirectional=True, **options)
    dims = {0: torch.export.Dim("steps", min=2, max=1000), 1: torch.export.Dim("batch", min=2)}
    program = torch.export.export(layer, (torch.randn(5, BATCH, 3),), dynamic_shapes=(dims,), strict=strict)
    assert sum("unitary_layers.scan" in str(node.target) for node in program.graph.nodes) == 2
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    exported = torch.export.load(buffer).module()
    for shape in ((9, BATCH, 3), (2, 2 * BATCH, 3)):
        x = torch.randn(shape)
        assert_rounding(output_of(exported, x), output_of(layer, x), n=N)

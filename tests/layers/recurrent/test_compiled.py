"""A compiled recurrence: one operator, whatever the length of the sequence, with the numbers of the plain layer."""

import copy
import warnings

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence

from unitary_layers import UnitaryLinear, UnitaryRNN, haar_unitary, projunn_step
from unitary_layers.layers.recurrent.operator import scan_operator
from unitary_layers.testing import assert_unitary

N, BATCH = 8, 3
CASES = {
    "padded": ({}, False),
    "packed both ways": ({"nonlinearity": "modrelu", "bidirectional": True}, True),
    "complex": ({"nonlinearity": "identity", "dtype": torch.complex64}, False),
    "last state": ({"nonlinearity": "identity", "input_size": 1, "return_sequence": False}, False),
}
ignore_dynamo = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # at a break


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Graphs:
    """A backend that keeps the graphs it is given, and goes on to autograd's own graphs."""

    def __init__(self) -> None:
        self.counter, self.seen = CompileCounterWithBackend("aot_eager"), []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]):
        self.seen.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return self.counter(graph, inputs)


def loss_of(layer: nn.Module, x: Tensor, *, packed: bool) -> Tensor:
    lengths = [max(len(x) - 2 * i, 1) for i in range(x.size(1))]
    output, h_n = layer(pack_padded_sequence(x, lengths) if packed else x)
    return (output.data if packed else output).abs().square().sum() + h_n.abs().sum()


@ignore_dynamo
@pytest.mark.parametrize(("options", "packed"), CASES.values(), ids=CASES)
def test_lengths_share_two_graphs_with_one_operator_a_direction(options, packed):
    layer, backend = UnitaryRNN(**{"input_size": 5, "hidden_size": N} | options), Graphs()
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend=backend, fullgraph=not packed)
    for steps in (6, 9, 4):
        x = torch.randn(steps, BATCH, layer.input_size, dtype=options.get("dtype"))
        losses = [loss_of(compiled, x, packed=packed), loss_of(twin, x, packed=packed)]
        assert_rounding(*losses, n=steps * N * BATCH)
        for loss in losses:
            loss.backward()
        for mine, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
            assert_rounding(mine.grad, theirs.grad, n=steps * N * N)
            mine.grad = theirs.grad = None
        assert layer.uses == steps  # by which the step has its length
    found = [sum(target.startswith("unitary_layers.scan") for target in graph) for graph in backend.seen]
    assert [count for count in found if count] == 2 * [layer.num_layers * (1 + layer.bidirectional)]


def test_a_step_of_a_compiled_layer_is_as_long_as_that_of_a_plain_one():
    layer = UnitaryRNN(5, N)
    twin, x = copy.deepcopy(layer), torch.randn(6, BATCH, 5)
    for run in (torch.compile(layer, backend="eager"), twin):
        loss_of(run, x, packed=False).backward()
        projunn_step(run)
    assert_rounding(layer.weight_hh_l0, twin.weight_hh_l0, n=N * N)


def test_a_second_derivative_is_refused():
    compiled = torch.compile(UnitaryRNN(5, N), backend="aot_eager")
    x = torch.randn(4, BATCH, 5, requires_grad=True)
    (first,) = torch.autograd.grad(compiled(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        first.sum().backward()


@ignore_dynamo
@pytest.mark.parametrize(("kind", "sizes"), [("tanh", None), ("modrelu", [3, 2, 1])], ids=["padded", "packed"])
def test_torch_finds_no_fault_with_the_operator(kind, sizes):
    projected, h_0, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((6, N), (3, N), (N,)))
    inputs = [t.requires_grad_() for t in (projected, h_0, haar_unitary(N, dtype=torch.float64), bias)]
    inputs[3] = inputs[3] if kind == "modrelu" else None
    rest = (None, None if sizes is None else torch.tensor(sizes), kind, False)
    torch.library.opcheck(scan_operator, (*inputs, *rest))


@ignore_dynamo
@pytest.mark.parametrize("make", [lambda: UnitaryLinear(N, N), lambda: UnitaryRNN(N, N)], ids=["linear", "rnn"])
def test_an_optimiser_that_was_never_attached_is_noticed_beside_a_compiled_layer(make):
    layer = make()
    compiled, optimizer = torch.compile(layer, backend="aot_eager"), torch.optim.AdamW(layer.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(10):
            output = compiled(torch.randn(3, BATCH, N))
            (output if isinstance(output, Tensor) else output[0]).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert ["was not attached" in str(warning.message) for warning in found] == [True]
    assert_unitary(layer)

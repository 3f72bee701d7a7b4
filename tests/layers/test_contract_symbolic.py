"""What every layer promises of torch.fx: plain symbolic_trace takes it for one operation, alone and inside a model."""

import copy
import pickle

import pytest
import torch
from closeness import assert_rounding
from entries import ENTRIES, Entry, N, every_entry, gradient_of, loss_of, matrices, output_of, snapshot
from torch import nn
from torch.fx import symbolic_trace

from unitary_layers import GroupSort, UnitaryLinear, UnitaryRNN, attach, projunn_step, unitary_weights
from unitary_layers.testing import assert_unitary

SORT = Entry("group-sort", lambda **_: GroupSort(), (4, N))
PLACES = {"alone": lambda module: module, "inside": lambda module: nn.Sequential(nn.Identity(), module)}
every_place = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)


@pytest.mark.parametrize("entry", [*ENTRIES, SORT], ids=lambda e: e.name)
@every_place
def test_a_graph_is_the_layer_itself(entry, place):
    module, x = place(entry.make()), entry.input()
    graph = symbolic_trace(module)
    graph.graph.lint()
    assert list(map(id, graph.parameters())) == list(map(id, module.parameters()))
    for inputs in (x, -x, x[:, :2] if entry.name.startswith("rnn") else x[:2]):
        assert torch.equal(output_of(graph, inputs), output_of(module, inputs))
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert torch.equal(output_of(other, x), output_of(module, x))
        assert not set(map(id, other.parameters())) & set(map(id, module.parameters()))


@every_entry
@every_place
def test_training_through_a_graph_is_training(entry, place):
    module, twin, x = place(entry.make()), place(entry.make()), entry.input()
    twin.load_state_dict(snapshot(module))
    graph = symbolic_trace(module)
    for run in (graph, twin):
        if not entry.name.startswith("cell"):  # of one step, that of a cell does not show its recurrent matrix
            loss_of(run, x).backward()
        else:
            output_of(run, x).abs().square().sum().backward()
        assert [gradient_of(w) is None for w in unitary_weights(run)] == [False] * len(matrices(run))
        projunn_step(run)
    assert all(int(weight.count) == 1 for weight in unitary_weights(module))
    for mine, theirs in zip(unitary_weights(module), unitary_weights(twin), strict=True):
        assert torch.equal(mine.matrix, theirs.matrix)
    assert_unitary(graph)


def test_an_optimiser_of_a_graph_is_attached_to_the_layer():
    module = nn.Sequential(nn.Linear(3, N), UnitaryLinear(N, N, gradient="factored"))
    graph = symbolic_trace(module)
    optimizer = torch.optim.AdamW(graph.parameters(), lr=1e-2)
    attach(graph, optimizer)
    before = module[1].weight.detach().clone()
    graph(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(module[1].weight, before)
    assert_unitary(module)


def test_a_state_goes_in_and_comes_out():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = UnitaryRNN(3, N)

        def forward(self, x, h):
            _, h = self.rnn(x, h)
            return self.rnn(x, hx=h)[0]

    module, x, h = Twice(), torch.randn(5, 2, 3), torch.randn(1, 2, N)
    assert torch.equal(symbolic_trace(module)(x, h), module(x, h))
    assert torch.equal(symbolic_trace(module.rnn)(x, h)[0], module.rnn(x, h)[0])


@pytest.mark.parametrize("make", [lambda: UnitaryLinear(N, N), GroupSort], ids=["linear", "sort"])
def test_hooks_run_once(make):
    module, x = nn.Sequential(make()), torch.randn(4, N)
    module[0].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    module[0].register_forward_hook(lambda _, args, output: 2 * output)
    graph = symbolic_trace(module)
    assert torch.equal(graph(x), module(x))
    assert_rounding(graph(x), 2 * module[0].forward(x + 1), n=N)


def test_hooks_of_the_graph_are_run():
    graph, seen = symbolic_trace(nn.Sequential(UnitaryLinear(N, N))), []
    graph.get_submodule("0").register_forward_hook(lambda *_: seen.append(1))
    graph(torch.randn(4, N))
    assert seen == [1]

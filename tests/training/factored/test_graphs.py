"""Factored gradients in compiled graphs: what the layer collects is what it collects without a compiler."""

import copy

import pytest
import torch
from closeness import assert_rounding
from torch import nn

from unitary_layers import UnitaryLinear, UnitaryRNN, projunn_step, unitary_weights
from unitary_layers.training.factored.graphs import weight_at

N = 8


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


LAYERS = {
    "linear": lambda: UnitaryLinear(N, N, bias=False, gradient="factored"),
    "rnn": lambda: UnitaryRNN(N, N, bias=False, gradient="factored").requires_grad_(False),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_gradient_that_is_all_that_a_backward_leaves(make):
    """No compiler drops it, though neither the input nor another parameter has one; micro-batches add up."""
    layer = make()
    weight = next(unitary_weights(layer)).parameter.requires_grad_()
    twin = copy.deepcopy(layer)
    for run in (torch.compile(layer, backend="aot_eager", fullgraph=True), twin):
        for part in range(2):
            y = run(torch.randn(3, N, generator=torch.Generator().manual_seed(part)))
            (y[0] if isinstance(y, tuple) else y).square().sum().backward()
        projunn_step(run)
    assert next(unitary_weights(layer)).count == 1
    assert_rounding(weight, next(unitary_weights(twin)).parameter, n=N * N)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_who_asks_for_other_gradients_leaves_it_alone(make):
    layer, x = make(), torch.ones(3, N, requires_grad=True)
    weight = next(unitary_weights(layer)).parameter.requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    torch.autograd.grad((y[0] if isinstance(y, tuple) else y).square().sum(), x)
    assert weight.grad is None
    y = compiled(x)
    (y[0] if isinstance(y, tuple) else y).square().sum().backward()
    assert weight.grad is not None


def test_a_graph_is_made_anew_while_a_gradient_waits():
    net = nn.Sequential(UnitaryLinear(N, N, gradient="factored"), nn.Linear(N, 2))
    twin = copy.deepcopy(net)
    for run in (torch.compile(net, backend="aot_eager", fullgraph=True), twin):
        for rows in (3, 5, 4):  # micro-batches
            run(torch.ones(rows, N)).square().sum().backward()
        run.eval()(torch.ones(2, N))
        torch.export.export(net, (torch.ones(2, N),))
    assert_rounding(net[0].weight.grad, twin[0].weight.grad, n=N * N)


def test_layers_of_one_graph_are_not_taken_for_one_another():
    net = nn.Sequential(*(UnitaryLinear(N, N, gradient="factored") for _ in range(3)))
    twin, x = copy.deepcopy(net), torch.randn(4, N)
    for run in (torch.compile(net, backend="aot_eager"), twin):
        run(x).square().mean().backward()
        projunn_step(run)
    for mine, theirs in zip(net, twin, strict=True):
        assert_rounding(mine.weight, theirs.weight, n=N * N)


def test_a_weight_is_found_where_it_has_gone():
    layer = UnitaryLinear(N, N, gradient="factored")
    for place in (layer, copy.deepcopy(layer), layer.double()):
        assert weight_at(place.weight.detach()).parameter is place.weight
    address = layer.weight.detach()
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"expected a layer with the factored weight \(8, 8\)"):
        weight_at(address)

"""Weights of one shape and one rule move as one batch, and as each would alone."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from unitary_layers import OrthogonalConv2d, UnitaryLinear, UpdateRule, projunn_step
from unitary_layers.linalg import unitarity_error
from unitary_layers.projunn.sampling import LINEAR_SAMPLERS as LINEAR
from unitary_layers.testing import assert_unitary
from unitary_layers.training import batch, unitary_weights
from unitary_layers.training.batch import STACKED, Step, batches

N, COUNT = 12, 4
RULES = {
    "lsi D": UpdateRule("D", lr=0.1),
    "lsi T": UpdateRule("T", rank=2, lr=0.1),
    "power": UpdateRule(sampler="power", lr=0.1),
    "column": UpdateRule(sampler="column", lr=0.1),
    "svd": UpdateRule("D", rank=3, sampler="svd", lr=0.1),
    "gradient": UpdateRule(lr=0.01, direction="gradient"),
}
LAYERS: dict[str, Callable[[UpdateRule], nn.Module]] = {
    "real": lambda rule: UnitaryLinear(N, N, update=rule, bias=False),
    "complex": lambda rule: UnitaryLinear(N, N, update=rule, bias=False, dtype=torch.complex64),
    "factored": lambda rule: UnitaryLinear(N, N, update=rule, bias=False, gradient="factored"),
    "convolution": lambda rule: OrthogonalConv2d(4, 4, input_size=(4, 3), update=rule, bias=False),
}


def many(layer: str = "real", rule: UpdateRule = RULES["lsi T"]) -> nn.ModuleList:
    return nn.ModuleList(LAYERS[layer](rule) for _ in range(COUNT))


def backward(net: nn.Module, step: int = 0) -> None:
    for i, layer in enumerate(net):
        shape = (2, 4, 4, 3) if isinstance(layer, OrthogonalConv2d) else (5, N)
        dtype = torch.complex64 if layer.is_complex else torch.float32
        x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(10 * step + i))
        layer(x).abs().pow(3).sum().backward()


# a factored gradient is sampled by thin products alone
PAIRS = [(layer, name) for layer in LAYERS for name in RULES if layer != "factored" or RULES[name].sampler in LINEAR]


@pytest.mark.parametrize(("layer", "name"), PAIRS)
def test_a_batch_moves_as_its_weights_would_alone(layer, name, monkeypatch):
    rule = RULES[name]
    together = many(layer, rule)
    alone = copy.deepcopy(together)
    for step in range(3):
        backward(together, step)
        projunn_step(together)
        with monkeypatch.context() as context:
            context.setattr(batch, "LARGEST", 0)
            backward(alone, step)
            projunn_step(alone)
    assert_unitary(together)
    for (name, ours), theirs in zip(together.state_dict().items(), alone.state_dict().values(), strict=True):
        largest = float(theirs.abs().max()) or 1.0  # a moment or a previous factor has the scale of a gradient
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=100 * N * torch.finfo(torch.float32).eps * largest, msg=name
        )


def test_what_goes_together():
    rule, other = RULES["lsi T"], RULES["lsi D"]
    small = [UnitaryLinear(6, 6, update=r, dtype=t) for r in (rule, other) for t in (torch.float32, torch.complex64)]
    net = nn.ModuleList([*small, UnitaryLinear(7, 7, update=rule), UnitaryLinear(6, 6, update=rule), small[0]])
    for weight in unitary_weights(net):
        weight.parameter.grad = torch.ones_like(weight.parameter)
    steps = [Step(weight, weight.gradient, weight.rule) for weight in unitary_weights(net)]
    names = [[step.weight.name for step in b.steps] for b in batches(steps)]
    assert names == [["0.weight", "5.weight"], ["1.weight"], ["2.weight"], ["3.weight"], ["4.weight"]]


def test_large_weights_go_alone_and_stacks_are_bounded():
    def sizes(n: int, count: int) -> list[int]:
        layer = UnitaryLinear(n, n, bias=False, init="identity")
        layer.weight.grad = layer.weight.detach()
        (weight,) = unitary_weights(layer)
        return [len(b.steps) for b in batches([Step(weight, weight.gradient, weight.rule)] * count)]

    assert sizes(257, 3) == [1, 1, 1]
    full = STACKED // 256**2
    assert sizes(256, full + 3) == [full, 3]


def test_a_bad_gradient_in_a_batch_is_named_or_skipped_alone():
    for sampler in ("lsi", "svd"):
        for policy in ("raise", "skip"):
            net = many(rule=UpdateRule(sampler=sampler, nonfinite=policy, lr=0.1))
            backward(net)
            net[2].weight.grad[1, 3] = math.inf
            before = [p.detach().clone() for p in net.parameters()]
            if policy == "raise":
                with pytest.raises(RuntimeError, match=r"unitary weight '2.weight' \(12, 12\), got NaN or inf"):
                    projunn_step(net)
            else:
                projunn_step(net)
            moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
            assert moved == [policy == "skip" and i != 2 for i in range(COUNT)]
            assert [int(layer.weight_count) for layer in net] == list(map(int, moved))
            assert max(float(unitarity_error(p.detach())) for p in net.parameters()) < 1e-4


def test_the_graph_notices_that_a_batch_was_changed():
    net = many()
    x = torch.randn(2, N, requires_grad=True)
    loss = nn.Sequential(*net)(x).sum()
    loss.backward(retain_graph=True)
    projunn_step(net)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()

"""Rounding takes a weight away from the manifold, step by step; the retraction when it is due brings it back."""

import math

import pytest
import torch

from unitary_layers import OrthogonalConv2d, UnitaryLinear, UpdateRule, projunn_step, unitarity_error_of
from unitary_layers.training import unitary_weights

EPS = torch.finfo(torch.float32).eps
N, STEPS, PERIOD = 16, 600, 20
LAYERS = {
    "real": lambda rule: UnitaryLinear(N, N, bias=False, update=rule),
    "tall": lambda rule: UnitaryLinear(N // 2, N, bias=False, update=rule),
    "wide": lambda rule: UnitaryLinear(N, N // 2, bias=False, update=rule),
    "conv, real and complex": lambda rule: OrthogonalConv2d(N, N, input_size=(1, 4), update=rule),
}


def errors_of(layer: str, rule: UpdateRule) -> list[float]:
    """The error before each step of norm 0.3 at which a retraction may be due."""
    module = LAYERS[layer](rule)
    weights, errors = list(unitary_weights(module)), []
    generator = torch.Generator().manual_seed(0)
    for count in range(1, STEPS + 1):
        for weight in weights:
            g = torch.randn(weight.parameter.shape, generator=generator)
            weight.parameter.grad = g * (0.3 / math.sqrt(N * rule.rank))
        projunn_step(module)
        if count % PERIOD == PERIOD - 1:
            errors.append(float(unitarity_error_of(module)))
    return errors


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("variant", "rank"), [("T", 1), ("D", 4)])
def test_the_error_grows_as_a_random_walk_and_not_at_all_with_retractions(layer, variant, rank):
    bound = 5 * EPS * math.sqrt(N)  # of a random walk of 20 steps, each of which rounds a weight of norm sqrt(n) once
    repaired = errors_of(layer, UpdateRule(variant, rank=rank, lr=1.0, retract_every=PERIOD))
    assert max(repaired) <= bound
    assert max(repaired[-5:]) <= 2 * max(repaired[:5])
    alone = errors_of(layer, UpdateRule(variant, rank=rank, lr=1.0, retract_every=0))
    assert alone[-1] > 2 * max(repaired[-5:]), "the walk goes on without"
    assert alone[-1] <= bound * math.sqrt(STEPS / PERIOD), (
        "the error of a sum of small errors, not of a drift to one side"
    )

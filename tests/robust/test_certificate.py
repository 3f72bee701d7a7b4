"""Certified radii are proofs: no attack within one changes a prediction, and of a linear model they are exact."""

import math

import pytest
import torch
from torch import Tensor, nn

from unitary_layers import GroupSort, OrthogonalConv2d, UnitaryLinear
from unitary_layers.robust import (
    HouseholderActivation,
    NormPool,
    ProjectionPool,
    ReflectBlock,
    SpatialShift,
    UnitNormLinear,
    boundary_distance,
    certified_radius,
    pool_lipschitz,
)

EPS = torch.finfo(torch.float64).eps


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_radius_of_a_linear_model_is_the_distance_to_the_nearest_boundary():
    weight, x = randn(4, 6), randn(9, 6, seed=1)
    logits = x @ weight.mT
    radii = certified_radius(logits, weight)
    for i, y in enumerate(logits.argmax(dim=1)):
        distances = {j: (logits[i, y] - logits[i, j]) / (weight[y] - weight[j]).norm() for j in range(4) if j != y}
        nearest = min(distances, key=distances.get)
        assert radii[i].item() == pytest.approx(distances[nearest].item(), rel=100 * EPS)
        normal = (weight[nearest] - weight[y]) / (weight[y] - weight[nearest]).norm()
        for stretch, right in ((0.999, True), (1.001, False)):
            assert ((weight @ (x[i] + stretch * radii[i] * normal)).argmax() == y) == right
    torch.testing.assert_close(certified_radius(logits, weight, 2.0), radii / 2)
    batched = certified_radius(logits.view(3, 3, 4), weight)
    assert torch.equal(batched, radii.view(3, 3))


def test_a_wrong_prediction_has_no_radius():
    weight, logits = randn(4, 6), randn(9, 4, seed=1)
    predicted = logits.argmax(dim=1)
    assert torch.equal(certified_radius(logits, weight, targets=predicted), certified_radius(logits, weight))
    assert (certified_radius(logits, weight, targets=(predicted + 1) % 4) == 0).all()


def test_between_equal_rows_there_is_no_boundary():
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    logits = torch.tensor([[3.0, 2.0, 1.0], [2.0, 2.0, 1.0]], requires_grad=True)  # two rows, and other biases
    radii = certified_radius(logits, weight)
    torch.testing.assert_close(radii, torch.tensor([2 / math.sqrt(2), 0.0]))
    radii.sum().backward()
    assert logits.grad.isfinite().all()
    assert certified_radius(torch.tensor([2.0, 1.0]), weight[:2]) == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_radii_are_not_in_half_precision(dtype):
    radii = certified_radius(randn(5, 3).to(dtype), randn(3, 4).to(dtype))
    assert radii.dtype == torch.promote_types(dtype, torch.float32)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"expected logits \(..., classes\) and a head .* got shapes \(2, 3\)"):
        certified_radius(randn(2, 3), randn(4, 5))
    with pytest.raises(ValueError, match="of two classes or more"):
        certified_radius(randn(2, 1), randn(1, 5))
    with pytest.raises(ValueError, match="expected a positive Lipschitz constant, got 0"):
        certified_radius(randn(2, 3), randn(3, 5), 0)
    with pytest.raises(ValueError, match="expected steps and doublings of at least 0, got -1 and 10"):
        boundary_distance(nn.Identity(), randn(2, 3), steps=-1)


HEAD, LOGITS, TARGETS = randn(3, 5), randn(2, 3), torch.tensor([0, 2])
WRONG = {
    "targets by position": ((HEAD, TARGETS), TypeError, r"lipschitz to be a number, got torch.int64 \(2,\).*by name"),
    "a target by position": ((HEAD, TARGETS[0]), TypeError, r"lipschitz to be a number, got torch.int64 \(\)"),
    "many constants": ((HEAD, torch.ones(2)), TypeError, r"lipschitz to be a number, got torch.float32 \(2,\)"),
    "a name": ((HEAD, "1"), TypeError, "lipschitz to be a number, got '1'"),
    "nothing": ((HEAD, None), TypeError, "lipschitz to be a number, got None"),
    "no number": ((HEAD, math.nan), ValueError, "positive Lipschitz constant, got nan"),
    "a list": ((HEAD, 1.0, [0, 2]), TypeError, "targets to be a tensor, got list"),
    "too many": ((HEAD, 1.0, torch.zeros(3).long()), ValueError, r"torch.int64 \(2,\), got torch.int64 \(3,\)"),
    "a column": ((HEAD, 1.0, TARGETS[:, None]), ValueError, r"torch.int64 \(2,\), got torch.int64 \(2, 1\)"),
    "probabilities": ((HEAD, 1.0, LOGITS), ValueError, r"torch.int64 \(2,\), got torch.float64 \(2, 3\)"),
    "bytes": ((HEAD, 1.0, TARGETS.byte()), ValueError, "got torch.uint8"),
    "a class too many": ((HEAD, 1.0, TARGETS + 1), ValueError, "targets from 0 to 2, got 3"),
    "a negative class": ((HEAD, 1.0, TARGETS - 1), ValueError, "targets from 0 to 2, got -1"),
    "a complex head": ((HEAD * 1j,), ValueError, "real logits and a real head, got torch.float64 and torch.complex128"),
}


@pytest.mark.parametrize(("arguments", "error", "match"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused_in_words(arguments, error, match):
    with pytest.raises(error, match=f"expected .*{match}"):
        certified_radius(LOGITS, *arguments)


def test_a_constant_may_be_a_tensor_and_targets_of_an_empty_batch_none():
    constant = torch.tensor(2.0, dtype=torch.float64)
    assert torch.equal(certified_radius(LOGITS, HEAD, constant), certified_radius(LOGITS, HEAD, 2))
    assert certified_radius(LOGITS[:0], HEAD, targets=TARGETS[:0]).shape == (0,)
    radii = torch.func.vmap(lambda z, y: certified_radius(z, HEAD, targets=y))(LOGITS, TARGETS)
    assert torch.equal(radii, certified_radius(LOGITS, HEAD, targets=TARGETS))


def test_radii_have_a_gradient():
    weight, logits = randn(3, 4).requires_grad_(), randn(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(certified_radius, (logits, weight))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 7)])
def test_constant_of_average_pooling_is_its_operator_norm(height, width):
    operator = torch.full((1, height * width), 1 / (height * width), dtype=torch.float64)
    norm = torch.linalg.matrix_norm(operator, 2).item()
    assert pool_lipschitz("avg", height, width) == pytest.approx(norm, rel=10 * height * width * EPS)
    assert pool_lipschitz("max", height, width) == pool_lipschitz("norm", height, width) == 1
    with pytest.raises(ValueError, match=r"expected pool to be one of .* got 'avgmax'"):
        pool_lipschitz("avgmax", height, width)


def network(seed: int, inputs: Tensor) -> nn.Sequential:
    """A 1-Lipschitz network of most of the parts, and a head that sees all classes among the inputs."""
    torch.manual_seed(seed)
    dd = {"dtype": torch.float64}
    model = nn.Sequential(
        OrthogonalConv2d(1, 4, 3, stride=2, padding=1, **dd),
        HouseholderActivation(4, **dd),
        ReflectBlock(OrthogonalConv2d(4, 3, 3, padding=1, **dd)),
        SpatialShift(),
        ProjectionPool(4, **dd),
        [NormPool(), nn.Flatten()][seed % 2],
        UnitaryLinear([2, 18][seed % 2], 8, **dd),
        GroupSort(),
        UnitNormLinear(8, 3, **dd),
    ).eval()
    with torch.no_grad():
        model[-1].bias -= model(inputs).mean(dim=0)
    return model


def radii_of(model: nn.Sequential, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return certified_radius(model(inputs), model[-1].matrix)


@pytest.mark.parametrize("seed", range(4))
def test_no_certificate_is_above_the_upper_bound_or_an_attack(seed):
    inputs = randn(16, 1, 6, 6, seed=seed)
    model = network(seed, inputs)
    radii, upper = radii_of(model, inputs), boundary_distance(model, inputs)
    assert (radii <= upper * (1 + 1000 * EPS)).all()  # of an isometry both are the distance, up to rounding
    assert upper.isfinite().any(), "an upper bound says something"
    targets = model(inputs).argmax(dim=1)
    points = inputs.clone()
    for _ in range(10):  # projected gradients, within 0.999 of the radius
        points.requires_grad_(True)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(points), targets, reduction="sum"), points)
        step = gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-300)[:, None, None, None]
        change = points.detach() + 0.25 * radii[:, None, None, None] * step - inputs
        norm = change.flatten(1).norm(dim=1)[:, None, None, None]
        points = inputs + change * (0.999 * radii[:, None, None, None] / norm).clamp(max=1).nan_to_num(1)
    assert torch.equal(model(points).argmax(dim=1), targets)


def test_a_head_stands_for_the_matrix_that_it_multiplies_by():
    for head, matrix in (
        (nn.Linear(4, 3), "weight"),
        (UnitNormLinear(4, 3), "matrix"),
        (UnitaryLinear(4, 3), "matrix"),
    ):
        logits = head(torch.randn(5, 4))
        assert torch.equal(certified_radius(logits, head), certified_radius(logits, getattr(head, matrix)))
    with pytest.raises(ValueError, match="expected a linear head, got a Sequential"):
        certified_radius(logits, nn.Sequential(head))


@pytest.mark.parametrize("kind", ["rounded", "averaged"])
def test_the_radius_is_that_of_the_rows_in_use(kind):
    head = UnitaryLinear(16, 10, weight_bits=2 if kind == "rounded" else None, dtype=torch.float64).eval()
    if kind == "averaged":
        with torch.no_grad():
            head.weight.add_(UnitaryLinear(16, 10, dtype=torch.float64).weight).div_(2)
    logits, rows = head(randn(20, 16)), (head(torch.eye(16, dtype=torch.float64)) - head.bias).mT
    radii = certified_radius(logits, head)
    torch.testing.assert_close(radii, certified_radius(logits, rows), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(radii, certified_radius(logits, head.matrix))


def test_the_upper_bound_of_a_linear_model_meets_its_certificate():
    head, x = nn.Linear(6, 2, dtype=torch.float64), randn(9, 6, seed=1)
    radii = certified_radius(head(x), head.weight)
    upper = boundary_distance(head, x, steps=0)
    assert (upper >= radii * (1 - 10 * EPS)).all()
    assert (upper <= 2 * radii * (1 + 10 * EPS)).all(), "one doubling, where the first step ends on the boundary"
    torch.testing.assert_close(boundary_distance(head, x, steps=40), radii, rtol=1e-11, atol=0)


def test_the_upper_bound_has_been_seen_and_is_infinite_where_nothing_was():
    def model(x: Tensor) -> Tensor:  # the second class from 5 on, with a slope that promises more
        return torch.stack([x[:, 0] * 0 + 1, torch.where(x[:, 0] < 5, 0.1 * x[:, 0], 9.0)], dim=1)

    upper = boundary_distance(model, torch.zeros(1, 1, dtype=torch.float64), steps=30)
    assert upper.item() == pytest.approx(5, rel=1e-8)
    assert boundary_distance(model, torch.full((1, 1), 6.0), steps=3).item() == math.inf, "no slope there"
    constant = boundary_distance(lambda x: x * 0 + torch.tensor([1.0, 0.0]), torch.zeros(3, 2))
    assert (constant == math.inf).all()

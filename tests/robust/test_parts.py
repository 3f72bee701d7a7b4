"""Parts of networks by their Jacobians: isometries, projections, and distances, whose gradients have norm 1."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from unitary_layers import (
    GroupSort,
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConvTranspose2d,
    StiefelConv2d,
    UnitaryLinear,
)
from unitary_layers.robust import (
    AbsActivation,
    BatchCentering,
    HouseholderActivation,
    LayerCentering,
    NormPool,
    ProjectionPool,
    ReflectBlock,
    SpatialShift,
    UnitNormLinear,
)

EPS = torch.finfo(torch.float64).eps
DD = {"dtype": torch.float64}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DD)


def spread(module: nn.Module) -> nn.Module:
    """The module with biases and angles that are not those of the start."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(module.named_parameters()):
            if name.endswith(("bias", "angle")):
                parameter += randn(*parameter.shape, seed=i)
    return module


def jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """The Jacobian as a matrix ``(outputs, inputs)``."""
    found = torch.func.jacrev(lambda flat: module(flat.view(x.shape)).flatten())(x.flatten())
    return found.reshape(-1, x.numel())


ISOMETRIES = {
    "householder": (lambda: HouseholderActivation(4, **DD), (2, 4, 3)),
    "householder-last": (lambda: HouseholderActivation(4, dim=-1, **DD), (2, 3, 4)),
    "abs": (AbsActivation, (2, 5)),
    "abs-half": (lambda: AbsActivation(0.5), (2, 5, 3)),
    "shift": (lambda: SpatialShift(0.25), (2, 5, 3, 4)),
    "shift-last": (lambda: SpatialShift(0.5, dim=-1), (2, 3, 5)),
    "reflect": (lambda: ReflectBlock(UnitaryLinear(6, 4, **DD)), (3, 6)),
    "reflect-square": (lambda: ReflectBlock(UnitaryLinear(6, 6, **DD)), (6,)),
    "reflect-conv": (lambda: ReflectBlock(OrthogonalConv2d(4, 3, 3, padding=1, **DD)), (1, 4, 4, 3)),
    "reflect-stride": (lambda: ReflectBlock(OrthogonalConv2d(2, 5, 3, 2, padding=1, **DD)), (1, 2, 4, 4)),
    "reflect-full": (lambda: ReflectBlock(OrthogonalConv2d(3, 2, input_size=4, **DD)), (1, 3, 4, 4)),
    "reflect-transposed": (lambda: ReflectBlock(OrthogonalConvTranspose2d(4, 4, 3, padding=1, **DD)), (1, 4, 3, 3)),
    "reflect-1d": (lambda: ReflectBlock(OrthogonalConv1d(4, 2, 3, padding=1, **DD)), (1, 4, 5)),
}
SHRINKING = {  # 1-Lipschitz: the largest singular value is at most 1
    "reflect-rows": (lambda: ReflectBlock(UnitaryLinear(4, 6, **DD)), (2, 4)),
    "reflect-zeros": (
        lambda: ReflectBlock(OrthogonalConv2d(4, 3, 3, padding=1, padding_mode="zeros", **DD)),
        (1, 4, 4, 3),
    ),
    "projection-pool": (lambda: ProjectionPool(6, **DD), (2, 6, 3)),
    "norm-pool": (NormPool, (2, 3, 4, 4)),
    "layer-centering": (lambda: LayerCentering((3, 4), **DD), (2, 3, 4)),
    "batch-centering": (lambda: BatchCentering(3, **DD), (4, 3, 2)),
    "batch-centering-eval": (lambda: BatchCentering(3, **DD).eval(), (4, 3, 2)),
}
EVERY = {**ISOMETRIES, **SHRINKING, "unit-norm": (lambda: UnitNormLinear(4, 3, **DD), (2, 4))}


@pytest.mark.parametrize("name", ISOMETRIES)
def test_jacobians_of_isometries_are_orthogonal(name):
    make, shape = ISOMETRIES[name]
    torch.manual_seed(0)
    module = spread(make())
    for seed in range(3):
        matrix = jacobian(module, randn(*shape, seed=seed))
        n = math.prod(shape)
        assert (matrix @ matrix.mT - torch.eye(n, **DD)).norm() <= 100 * n * EPS


@pytest.mark.parametrize("name", SHRINKING)
def test_nothing_enlarges_a_distance(name):
    make, shape = SHRINKING[name]
    torch.manual_seed(0)
    module = spread(make())
    for seed in range(3):
        x = randn(*shape, seed=seed)
        found = torch.autograd.functional.jacobian(module, x).view(-1, x.numel())  # which may write running means
        values = torch.linalg.svdvals(found)
        assert values.max() <= 1 + 100 * math.prod(shape) * EPS


@pytest.mark.parametrize("name", ["projection-pool", "norm-pool"])
def test_every_output_of_a_pooling_has_a_gradient_of_norm_1(name):
    make, shape = SHRINKING[name]
    matrix = jacobian(spread(make()), randn(*shape))
    torch.testing.assert_close(matrix.norm(dim=1), torch.ones(len(matrix), **DD), rtol=100 * EPS, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_parts_are_of_torch(name):
    make, shape = EVERY[name]
    module, x = spread(make()), randn(*shape)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(again(x), module(x), rtol=0, atol=0)
    assert module.float()(x.float()).dtype == torch.float32
    assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    zeros = torch.zeros(shape, requires_grad=True)
    module.float()(zeros).sum().backward()
    assert zeros.grad.isfinite().all(), "at 0 as well"
    traced = torch.fx.symbolic_trace(module)
    torch.testing.assert_close(traced(x.float()), module(x.float()), rtol=0, atol=0)
    repr(module)


def test_householder_sorts_at_first_and_is_its_formula():
    x, module = randn(5, 4, 3), HouseholderActivation(4, **DD)
    torch.testing.assert_close(module(x), GroupSort()(x), rtol=0, atol=10 * EPS)
    spread(module)
    for pair, angle in enumerate(module.angle.tolist()):
        reflection = torch.tensor([[math.cos(angle), math.sin(angle)], [math.sin(angle), -math.cos(angle)]], **DD)
        for z in x[:, 2 * pair : 2 * pair + 2].movedim(1, -1).reshape(-1, 2):
            side = z[0] * math.sin(angle / 2) - z[1] * math.cos(angle / 2)
            expected = reflection @ z if side > 0 else z
            got = module(z.repeat(2)[None])[0, 2 * pair : 2 * pair + 2]
            torch.testing.assert_close(got, expected, rtol=0, atol=10 * EPS)


@pytest.mark.parametrize("angle", [0.0, 1.0, math.pi / 2, 3.0, math.pi])
def test_projection_pool_is_the_distance_from_a_sector(angle):
    module = ProjectionPool(2, **DD)
    with torch.no_grad():
        module.angle.fill_(angle)
    lengths = torch.linspace(0, 20, 20001, **DD)
    rays = torch.stack([lengths * math.cos(angle / 2), lengths * math.sin(angle / 2)], 1)
    border = torch.cat([rays, rays * torch.tensor([1.0, -1.0], **DD)])
    for z in randn(10, 2):
        inside = math.atan2(abs(z[1]), z[0]) < angle / 2
        expected = (border - z).norm(dim=1).min().item() * (-1 if inside else 1)
        assert module(z[None]).item() == pytest.approx(expected, abs=1e-5)


def test_a_shift_is_what_it_says():
    x = randn(1, 8, 3, 3)
    y = SpatialShift()(x)
    for channel, (shift, side) in enumerate([(1, 2), (-1, 2), (1, 3), (-1, 3)]):
        assert torch.equal(y[:, channel], x.roll(shift, side)[:, channel])
    assert torch.equal(y[:, 4:], x[:, 4:])


def test_centering_is_a_norm_without_its_division():
    x = 3 * randn(6, 3, 4) + 2
    norm, ours = nn.BatchNorm1d(3, **DD), BatchCentering(3, **DD)
    for _ in range(2):
        deviation = x.movedim(1, 0).flatten(1).var(dim=1, correction=0) + norm.eps
        torch.testing.assert_close(ours(x), norm(x) * deviation.sqrt()[:, None], rtol=0, atol=1000 * EPS)
    torch.testing.assert_close(ours.running_mean, norm.running_mean)
    assert ours.num_batches_tracked == 2
    mean = BatchCentering(3, momentum=None, **DD)
    mean(x), mean(x + 1)
    torch.testing.assert_close(mean.running_mean, x.mean(dim=(0, 2)) + 0.5)
    torch.testing.assert_close(mean.eval()(x), x - mean.running_mean[:, None])
    layer = LayerCentering((3, 4), **DD)
    torch.testing.assert_close(layer(x), x - x.mean(dim=(1, 2), keepdim=True))


def test_a_unit_norm_layer_loads_a_linear_one():
    plain, head = nn.Linear(5, 3, **DD), UnitNormLinear(5, 3, **DD)
    head.load_state_dict(plain.state_dict())
    torch.testing.assert_close(head.matrix, plain.weight / plain.weight.norm(dim=1, keepdim=True))
    x = randn(2, 5)
    torch.testing.assert_close(head(x), x @ head.matrix.mT + plain.bias)
    assert UnitNormLinear(5, 3, bias=False).bias is None


def test_a_reflection_is_its_formula_and_trains():
    block, x = spread(ReflectBlock(UnitaryLinear(6, 4, **DD))), randn(3, 6)
    w, b = block.layer.weight, block.layer.bias
    torch.testing.assert_close(block(x), x - 2 * (x @ w.mT + b).relu() @ w)
    before = w.detach().clone()
    block(x).square().sum().backward()
    block(x).sum().backward()
    block.projunn_step()
    assert not torch.equal(before, block.layer.weight)
    assert block.unitarity_error() <= 100 * 6 * EPS


def test_what_does_not_fit_is_refused():
    for kind in (HouseholderActivation, ProjectionPool):
        with pytest.raises(ValueError, match="expected an even number of channels, got 3"):
            kind(3)
        with pytest.raises(ValueError, match=rf"{kind.__name__}: expected 4 channels in dimension 1, got shape \(2, 6"):
            kind(4)(torch.ones(2, 6))
    with pytest.raises(ValueError, match="HouseholderActivation: expected an input with a dimension 1, got shape"):
        HouseholderActivation(4)(torch.ones(4))
    with pytest.raises(ValueError, match=r"expected a share from 0 to 1, got 2"):
        AbsActivation(2)
    with pytest.raises(ValueError, match=r"expected a share above 0 and at most 1/2, got 0"):
        SpatialShift(0)
    with pytest.raises(ValueError, match=r"expected a share of at most 1 / 4 for 2 sides, got 0\.5"):
        SpatialShift(0.5)(torch.ones(1, 8, 2, 2))
    with pytest.raises(ValueError, match=r"LayerCentering: expected an input \(\.\.\., \*\(3,\)\)"):
        LayerCentering(3)(torch.ones(2, 4))
    with pytest.raises(TypeError, match="expected a UnitaryLinear or an orthogonal convolution"):
        ReflectBlock(StiefelConv2d(4, 4, 3))
    for layer in (UnitaryLinear(4, 4, gradient="factored"), UnitaryLinear(4, 4, dtype=torch.complex64)):
        with pytest.raises(ValueError, match="expected a real layer with dense gradients"):
            ReflectBlock(layer)
    with pytest.raises(ValueError, match="expected a layer without weight_bits"):
        ReflectBlock(UnitaryLinear(4, 4, weight_bits=4))


def test_an_empty_batch_says_nothing_of_the_mean():
    centering = BatchCentering(3, **DD)
    centering(randn(4, 3))
    before = centering.running_mean.clone()
    assert centering(torch.empty(0, 3, **DD)).shape == (0, 3)
    assert torch.equal(centering.running_mean, before)

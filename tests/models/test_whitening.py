"""The whitening stem: its answers to the patches of the images have unit variance and nothing in common."""

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_rounding
from torch import nn

from unitary_layers import OrthogonalConv2d, StiefelConv2d, StiefelNet, attach
from unitary_layers.models.whitening import FLOOR
from unitary_layers.testing import assert_unitary


def correlated(count: int = 64, channels: int = 3, side: int = 8) -> torch.Tensor:
    """Smooth images, whose neighbouring pixels and channels are much alike."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, channels, 3, 3, generator=generator)
    mixed = torch.einsum("bchw,dc->bdhw", coarse, torch.randn(channels, channels, generator=generator))
    return F.interpolate(mixed, side, mode="bilinear") + 0.1 * torch.randn(
        count, channels, side, side, generator=generator
    )


@pytest.mark.parametrize("taps", [2, 3])
@pytest.mark.parametrize("conv_layer", [StiefelConv2d, nn.Conv2d])
def test_answers_are_white(taps, conv_layer):
    """By the plain formula: patches, one by one, and the covariance of their answers."""
    images = correlated()
    model = StiefelNet((0,), (4,), stem_taps=taps, conv_layer=conv_layer)
    model.init_whitening(images)
    stem, width = model.stem, 3 * taps**2
    kernel = stem.conv.weight.detach().flatten(1) * stem.scale[:, None]
    answers = [
        kernel @ image[:, i : i + taps, j : j + taps].flatten()
        for image in images
        for i in range(9 - taps)
        for j in range(9 - taps)
    ]
    found = torch.stack(answers).double()
    found = found.T @ found / len(found)
    variances = stem.scale.double() ** -2 - FLOOR
    expected = torch.diag(variances / (variances + FLOOR))
    assert torch.allclose(found, expected, atol=10 * width * torch.finfo(torch.float32).eps * float(variances.max()))
    assert bool((stem.scale.diff() >= 0).all()), "the strongest directions first"
    assert float(found[0, 0]) == pytest.approx(1, abs=1e-2)


def test_orthogonal_operators_stand_behind_the_same_stem():
    nets = [StiefelNet((1,), (4,), conv_layer=layer) for layer in ("OrthogonalConv2d", "StiefelConv2d")]
    for net in nets:
        net.init_whitening(correlated())
    orthogonal, orthonormal = nets
    assert torch.equal(orthogonal.stem(correlated(2)), orthonormal.stem(correlated(2)))
    convs = [m for m in orthogonal.stages.modules() if isinstance(m, OrthogonalConv2d)]
    assert len(convs) == 2
    x = torch.randn(2, 4, 8, 8)
    assert_rounding(convs[1](x).norm(), x.norm(), n=4 * 8 * 8)


def test_both_signs_of_the_answers_go_on_at_the_size_of_the_image():
    model = StiefelNet((0,), (4,), act_layer=nn.Identity)
    model.init_whitening(correlated())
    x = correlated(2)
    y, minus = model.stem(x).chunk(2, dim=1)
    assert y.shape == (2, 12, 8, 8)
    assert torch.equal(y, -minus)
    assert torch.allclose(y[..., :7, :7], model.stem.conv(x) * model.stem.scale[:, None, None], atol=1e-4)


@pytest.mark.parametrize("assign", [False, True])
def test_a_fitted_kernel_stays_and_comes_back_from_a_state_dict(assign):
    model = StiefelNet((0, 0), (4, 8))
    model.init_whitening(correlated())
    before = model.stem.conv.weight.detach().clone()
    attach(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.1))
    model(correlated(4)).square().sum().backward()
    optimizer.step()
    assert_unitary(model)
    assert torch.equal(model.stem.conv.weight, before)
    other, fresh = StiefelNet((0, 0), (4, 8)), StiefelNet((0, 0), (4, 8))
    other.load_state_dict(fresh.state_dict())
    assert other.stem.conv.weight.requires_grad, "it was not fitted"
    other.load_state_dict(model.state_dict(), assign=assign)
    assert not other.stem.conv.weight.requires_grad
    x = correlated(2)
    assert torch.equal(other.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 1, 8, 8), r"expected images \(b, 3, h, w\) of sides of at least 2, got \(4, 1, 8, 8\)"),
        (torch.zeros(3, 8, 8), r"expected images \(b, 3, h, w\) .* got \(3, 8, 8\)"),
        (torch.zeros(4, 3, 1, 8), r"expected images \(b, 3, h, w\) of sides of at least 2, got \(4, 3, 1, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"expected images \(b, 3, h, w\) .* got \(0, 3, 8, 8\)"),
        (torch.full((4, 3, 8, 8), torch.nan), "expected images of finite numbers"),
    ],
)
def test_images_that_do_not_fit_are_refused_before_anything_changes(images, message):
    model = StiefelNet((0,), (4,))
    before = model.stem.conv.weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        model.init_whitening(images)
    assert torch.equal(model.stem.conv.weight, before)
    assert model.stem.conv.weight.requires_grad


def test_constant_images_are_whitened_up_to_the_floor():
    model = StiefelNet((0,), (4,))
    model.init_whitening(torch.ones(4, 3, 8, 8))
    assert torch.isfinite(model(correlated(2))).all()
    assert_unitary(model)


def test_half_precision_images_are_summed_in_full_precision():
    exact, half = StiefelNet((0,), (4,)), StiefelNet((0,), (4,))
    images = correlated().half()
    exact.init_whitening(images.float())
    half.init_whitening(images)
    assert torch.equal(exact.stem.scale, half.stem.scale)

"""Layers that share some of their weights: what each does afterwards, and which of them still share."""

import pytest
import torch
from closeness import assert_rounding
from torch import nn

from unitary_layers import OrthogonalConv2d, convert, revert


def conv(kernel_size: int | tuple[int, int] | None = 3, **options) -> OrthogonalConv2d:
    return OrthogonalConv2d(4, 8, kernel_size, bias=False, **options)


# Pairs of layers, and the names of the weights that the second has from the first.
SHARED = {
    "the mixing": (conv, conv, ["weight"]),
    "the shifts": (conv, conv, ["shifts"]),
    "the mixing of other kernels": (conv, lambda: conv(1), ["weight"]),
    "all, of other kernels": (lambda: conv((5, 1)), lambda: conv((1, 5)), ["weight", "shifts"]),
    "all, of other strides": (lambda: conv(stride=(1, 2)), lambda: conv(stride=(2, 1)), ["weight", "shifts"]),
    "some bins": (lambda: conv(None, input_size=4), lambda: conv(None, input_size=4), ["weight"]),
    "the other bins": (lambda: conv(None, input_size=4), lambda: conv(None, input_size=4), ["weight_pairs"]),
}


@pytest.mark.parametrize("case", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("order", [1, -1])
def test_layers_that_share_a_part_become_layers_of_their_own(case, order):
    *makers, names = case
    layers = [make() for make in makers]
    for name in names:
        setattr(layers[1], name, getattr(layers[0], name))
    model, x = nn.ModuleList(layers[::order]), torch.randn(2, 4, 4, 4)
    expected = [layer(x) for layer in model]
    revert(model)
    for layer, y in zip(model, expected, strict=True):
        assert tuple(layer.weight.shape[2:]) == layer.kernel_size
        assert_rounding(layer(x), y, n=100)
    assert model[0].weight is not model[1].weight


@pytest.mark.parametrize("options", [{"kernel_size": 3}, {"input_size": 4}], ids=str)
def test_layers_that_share_all_stay_tied(options):
    a, b = (OrthogonalConv2d(4, 4, bias=False, **options) for _ in range(2))
    for name in list(a._unitary):
        setattr(b, name, getattr(a, name))
    model, x = nn.Sequential(a, b), torch.randn(2, 4, 4, 4)
    y = model(x)
    revert(model)
    assert model[0].weight is model[1].weight
    assert_rounding(model(x), y, n=100)


def test_a_tie_of_other_strides_is_one_of_the_mixing_alone():
    model = nn.Sequential(*(nn.Conv2d(2, 8, 5, stride, 2, bias=False) for stride in ((1, 4), (2, 2))))
    model[1].weight = model[0].weight
    convert(model, conv="isometry")
    assert model[0].weight is model[1].weight
    assert [len(layer.shifts) for layer in model] == [5, 6]

"""What the note of the way back says of the singular values of a convolution, against those of its matrix."""

import pytest
import torch
from torch import nn

from unitary_layers import OrthogonalConv1d, OrthogonalConv2d, revert
from unitary_layers.testing import operator_matrix

F64 = torch.float64
STRIDES = [(3, 2, 1), (4, 2, 1), (3, 3, 1), (5, 2, 1), (5, 2, 3), (3, (2, 1), 1), (3, 1, 2)]  # taps, stride, dilation


def singular_values(net: nn.Sequential, channels: int, size: tuple[int, ...]) -> torch.Tensor:
    return torch.linalg.svdvals(operator_matrix(net, (channels, *size), dtype=F64))


@pytest.mark.parametrize(("taps", "stride", "dilation"), STRIDES)
@pytest.mark.parametrize("channels", [(2, 8), (2, 20), (4, 4)])
def test_it_holds_for_the_images_that_it_names(taps, stride, dilation, channels):
    conv = OrthogonalConv2d(*channels, taps, stride, dilation=dilation, bias=False, dtype=F64)
    net = nn.Sequential(conv)
    stated, _, images = revert(net)[0].note.removeprefix("|sigma^2 - 1| <= ").partition(", ")
    strides = conv.stride
    assert images == ("" if strides == (1, 1) else f"for sides in multiples of the stride {strides}")
    for factor in (4, 5):
        size = tuple(factor * s if s > 1 else 2 * factor + 1 for s in strides)
        sigma = singular_values(net, channels[0], size)
        assert (sigma.square() - 1).abs().max() <= float(stated) + 1e-12


def test_it_does_not_hold_for_others():
    net = nn.Sequential(OrthogonalConv2d(2, 8, 3, stride=2, bias=False, dtype=F64))
    revert(net)
    for side in (3, 5, 7):
        assert singular_values(net, 2, (side, side)).max() > 1.5


@pytest.mark.parametrize("side", [5, 6, 7])
def test_with_zeros_around_it_holds_for_all(side):
    net = nn.Sequential(OrthogonalConv1d(2, 4, 3, 2, padding_mode="zeros", bias=False, dtype=F64))
    note = revert(net)[0].note
    assert singular_values(net, 2, (side,)).max().square() - 1 <= float(note.removeprefix("sigma^2 - 1 <= ")) + 1e-12

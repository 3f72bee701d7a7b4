"""A recurrent cell over images: its formula step by step, and what it refuses."""

import pytest
import torch
from closeness import assert_rounding
from torch import nn

from unitary_layers import OrthogonalConvRNNCell
from unitary_layers.testing import assert_unitary

IMAGE = (2, 3, 4, 6)  # (b, channels, h, w)
KINDS = {"local": {"kernel_size": 3}, "full": {"input_size": (4, 6)}}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_it_is_its_formula(options):
    """With the recurrent map as torch's own convolution, padded periodically."""
    cell = OrthogonalConvRNNCell(3, 4, dtype=torch.float64, **options)
    x, h = torch.randn(IMAGE, dtype=torch.float64), torch.randn(2, 4, 4, 6, dtype=torch.float64)
    kernel = cell.conv_hh.spatial_kernel()
    before = [(t - 1) // 2 if "kernel_size" in options else 0 for t in kernel.shape[2:]]
    after = [t - 1 - b for t, b in zip(kernel.shape[2:], before, strict=True)]
    z = h
    for _ in range(3):
        padded = nn.functional.pad(z, [before[1], after[1], before[0], after[0]], mode="circular")
        drive = nn.functional.conv2d(x, cell.conv_ih.weight, cell.conv_ih.bias, padding=1)
        z = nn.functional.conv2d(padded, kernel) + drive
        z = z / (1 + z**2).sqrt()
    assert_rounding(cell(x, h, steps=3), z, n=200)
    assert_rounding(cell(x, cell(x, cell(x, h))), z, n=200)
    assert_rounding(cell(x[0], h[0], steps=3), z[0], n=200)
    assert_rounding(cell(x), cell(x, torch.zeros_like(h)), n=1)


def test_small_states_keep_their_norm_and_large_ones_are_bounded():
    cell = OrthogonalConvRNNCell(4, 4, 3, input_kernel_size=None, dtype=torch.float64)
    x, h = torch.zeros(1, 4, 5, 5, dtype=torch.float64), 1e-6 * torch.randn(1, 4, 5, 5, dtype=torch.float64)
    assert torch.allclose(cell(x, h, steps=50).norm(), h.norm(), rtol=1e-9)
    for huge in (1e30, 1e300):
        assert cell(x + huge, h).abs().max() <= 1
        assert_rounding(cell(x + huge, h), torch.ones_like(h), n=1)


def test_a_hook_of_the_convolution_is_called_at_each_step():
    cell, calls = OrthogonalConvRNNCell(2, 4, 3), []
    x = torch.randn(1, 2, 5, 5)
    expected = cell(x, steps=3)
    cell.conv_hh.register_forward_hook(lambda *_: calls.append(1))
    assert_rounding(cell(x, steps=3), expected, n=36)
    assert len(calls) == 3


def test_another_nonlinearity_and_new_weights():
    cell = OrthogonalConvRNNCell(2, 4, 3, nonlinearity=nn.Tanh(), bias=False)
    x = torch.randn(2, 2, 5, 5)
    assert_rounding(cell(x), cell.conv_ih(x).tanh(), n=4)
    before = [p.detach().clone() for p in cell.parameters()]
    cell.reset_parameters()
    assert not any(torch.equal(a, b) for a, b in zip(before, cell.parameters(), strict=True))
    assert_unitary(cell)
    assert "nonlinearity='Tanh'" in repr(cell)


def test_a_step_is_shorter_the_more_often_the_convolution_acts():
    cell = OrthogonalConvRNNCell(2, 4, 3)
    assert cell.conv_hh.uses == 64
    cell(torch.randn(1, 2, 4, 4), steps=9)
    assert cell.conv_hh.uses == 9


X = torch.randn(IMAGE)
REFUSED = {
    "a matrix": (lambda: OrthogonalConvRNNCell(3, 4, 3)(X[0, 0]), "3D .unbatched. or 4D input, got 2D"),
    "channels": (lambda: OrthogonalConvRNNCell(2, 4, 3)(X), "expected 2 channels, got 3"),
    "a state of another size": (
        lambda: OrthogonalConvRNNCell(3, 4, 3)(X, X),
        r"expected hx of shape \(2, 4, 4, 6\), got \(2, 3, 4, 6\)",
    ),
    "no step": (lambda: OrthogonalConvRNNCell(3, 4, 3)(X, steps=0), "expected steps >= 1, got 0"),
    "neither size": (lambda: OrthogonalConvRNNCell(3, 4), "expected input_size with kernel_size=None"),
    "a direct input of other channels": (
        lambda: OrthogonalConvRNNCell(3, 4, 3, input_kernel_size=None),
        "as many channels of the input as of the state .* got 3 and 4",
    ),
    "an even kernel": (lambda: OrthogonalConvRNNCell(3, 4, 3, input_kernel_size=2), "odd input_kernel_size, got 2"),
    "a name": (lambda: OrthogonalConvRNNCell(3, 4, 3, nonlinearity="tanh"), "'isru' or a module .* got 'tanh'"),
    "complex": (lambda: OrthogonalConvRNNCell(3, 4, 3, dtype=torch.complex64), "expected a real dtype"),
}


@pytest.mark.parametrize(("call", "match"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_take_it_refuses_in_words(call, match):
    with pytest.raises(ValueError, match=match):
        call()

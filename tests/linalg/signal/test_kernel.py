"""Local kernels from orthogonal matrices, kernels and blocks, the penalty, and pixels to channels."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import eps

from unitary_layers.linalg import depth_to_space, haar_unitary, space_to_depth, support_penalty, unitarity_error
from unitary_layers.linalg.signal.grid import pad_periodic
from unitary_layers.linalg.signal.kernel import blocks_of_kernel, kernel_of_blocks, local_kernel, shift_count


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.booleans())
def test_blocks_of_a_local_kernel_are_unitary_at_every_frequency_of_every_grid(m, height, width, s, odd):
    taps, stride = (max(height, s), max(width, s)), (s, s)
    shifts = haar_unitary(m, m // 2, batch=(shift_count(taps, stride),), dtype=torch.float64)
    kernel = local_kernel(haar_unitary(m * s * s, dtype=torch.float64), shifts, taps, stride)
    assert kernel.shape == (m * s * s, m, *taps)
    size = (5 * s, 2 * s) if odd else (s, 4 * s)  # one on which the kernel goes all around
    padded = pad_periodic(torch.eye(m * size[0] * size[1], dtype=torch.float64).reshape(-1, m, *size), (0, 0), taps)
    y = F.conv2d(padded, kernel, stride=s)[..., : size[0] // s, : size[1] // s]
    assert unitarity_error(y.flatten(1).mT) <= 10 * y[0].numel() * eps(torch.float64)


def test_a_local_kernel_by_hand():
    """Two taps of one side: the half of the channels that V spans stays, the other half comes from the next pixel."""
    mixing, v = haar_unitary(4, dtype=torch.float64), haar_unitary(4, 2, dtype=torch.float64)
    kernel = local_kernel(mixing, v[None], (2,), (1,))
    p = v @ v.mT
    expected = torch.stack([mixing @ p, mixing @ (torch.eye(4, dtype=torch.float64) - p)], dim=-1)
    assert (kernel - expected).abs().max() <= 40 * eps(torch.float64)


def test_every_matrix_counts_in_a_local_kernel():
    mixing = haar_unitary(4, dtype=torch.float64).requires_grad_()
    shifts = haar_unitary(4, 2, batch=(5,), dtype=torch.float64).requires_grad_()
    (local_kernel(mixing, shifts, (3, 4), (1, 1)) * torch.randn(4, 4, 3, 4, dtype=torch.float64)).sum().backward()
    assert (mixing.grad.abs().amax() > 0.01).all()
    assert (shifts.grad.abs().amax(dim=(-2, -1)) > 0.01).all()


@given(st.sampled_from([(3,), (4,), (3, 4), (4, 4), (2, 3, 2)]), st.integers(0, 3))
def test_blocks_act_as_the_circular_convolution_does(size, extra):
    """One multiplication a frequency against a plain sum over the taps, those beyond the grid included."""
    taps = tuple(n + extra for n in size)
    kernel, x = torch.randn(2, 3, *taps, dtype=torch.float64), torch.randn(3, *size, dtype=torch.float64)
    slow = torch.zeros(2, *size, dtype=torch.float64)
    dims = tuple(range(1, 1 + len(size)))
    for tap in torch.cartesian_prod(*(torch.arange(t) for t in taps)).reshape(-1, len(size)).tolist():
        slow += torch.tensordot(kernel[(..., *tap)], x.roll([-t for t in tap], dims), 1)
    spectrum = torch.fft.fftn(x, dim=dims).movedim(0, -1)
    product = (blocks_of_kernel(kernel, size) @ spectrum.unsqueeze(-1)).squeeze(-1).movedim(-1, 0)
    found = torch.fft.ifftn(product, dim=dims)
    tolerance = 10 * kernel.numel() * x.numel() * eps(torch.float64)
    assert (found - slow).abs().max() <= tolerance
    if extra == 0:
        assert (kernel_of_blocks(blocks_of_kernel(kernel, size)) - kernel).abs().max() <= tolerance


def test_the_penalty_counts_what_is_outside_a_centred_window():
    kernel = torch.zeros(2, 3, 5, 6)
    for place, value in (((0, 0), 1.0), ((4, 5), 2.0), ((1, 1), 3.0), ((2, 0), 5.0), ((0, 4), 7.0)):
        kernel[1, 2][place] = value
    assert support_penalty(kernel, 1) == 4 + 9 + 25 + 49
    assert support_penalty(kernel, 3) == 25 + 49  # offsets -1, 0 and 1; (4, 5) is (-1, -1)
    assert support_penalty(kernel, (5, 3)) == 49
    assert support_penalty(kernel, (5, 6)) == 0
    assert support_penalty(kernel, 2) == 4 + 25 + 49  # an even window has its extra tap behind
    kernel.requires_grad_()
    support_penalty(kernel, 3).backward()
    assert kernel.grad[1, 2, 2, 0] == 10
    with pytest.raises(ValueError, match="support of 2 sides of at least 1, got"):
        support_penalty(kernel, 0)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 3))
def test_pixels_to_channels_and_back(stride, channels):
    x = torch.randn(2, channels, *(s * (i + 1) for i, s in enumerate(stride)))
    y = space_to_depth(x, stride)
    assert y.shape == (2, channels * torch.Size(stride).numel(), *range(1, len(stride) + 1))
    assert torch.equal(depth_to_space(y, stride), x)
    if len(stride) == 2 and stride[0] == stride[1]:
        assert torch.equal(y, F.pixel_unshuffle(x, stride[0]))


def test_sides_that_a_stride_does_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"multiples of the stride \(2, 2\), got \(4, 5\)"):
        space_to_depth(torch.zeros(1, 1, 4, 5), (2, 2))


@pytest.mark.parametrize("width", [0, 1, 3, 7])
def test_periodic_padding_goes_around_any_number_of_times(width):
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    padded = pad_periodic(x, (width, 0), (width, width))
    for i in range(padded.size(2)):
        for j in range(padded.size(3)):
            assert padded[0, 0, i, j] == x[0, 0, (i - width) % 2, j % 3]

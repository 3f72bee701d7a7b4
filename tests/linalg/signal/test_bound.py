"""The bound on the singular values of a convolution, against those of its matrix, and the regulariser."""

from math import prod

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import eps

from unitary_layers import OrthogonalConv2d, orthogonality_bound, orthogonality_penalty
from unitary_layers.testing import operator_matrix

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SHAPES = [  # kernel, stride, dilation, groups, side of the image
    ((3, 3, 3, 3), 1, 1, 1, 5),
    ((4, 6, 3), 2, 1, 1, 6),
    ((16, 3, 2, 3), 2, 1, 1, 4),
    ((4, 2, 3), 1, 2, 2, 7),
    ((2, 2, 2, 2, 2), 1, 1, 1, 3),
    ((4, 2, 3), 3, 2, 1, 12),
]


def circular(kernel, stride, dilation, groups):
    """The convolution with circular padding, whose first tap is the output's pixel."""

    def apply(x):
        for dim, taps in enumerate(kernel.shape[2:], start=2):
            reach = (taps - 1) * dilation
            x = x.index_select(dim, torch.arange(x.size(dim) + reach) % x.size(dim))
        return CONVOLUTIONS[kernel.ndim - 2](x, kernel, stride=stride, dilation=dilation, groups=groups)

    return apply


@given(
    st.sampled_from(SHAPES), st.sampled_from([torch.float64, torch.complex128]), st.integers(0, 2**31), st.booleans()
)
def test_no_singular_value_is_beyond_the_bound(shape, dtype, seed, near):
    size, stride, dilation, groups, side = shape
    kernel = torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    kernel = kernel / kernel.flatten(1).norm(dim=1).reshape(-1, *[1] * (kernel.ndim - 1))
    if near:  # one tap, of orthonormal rows or columns, and a little of all others
        delta = torch.zeros_like(kernel)
        delta[(..., *[0] * (kernel.ndim - 2))] = torch.eye(*size[:2], dtype=dtype).repeat(1, 1)
        kernel = delta + 1e-3 * kernel
    sizes = (size[1] * groups, *[side] * (kernel.ndim - 2))
    matrix = operator_matrix(circular(kernel, stride, dilation, groups), sizes, dtype=dtype)
    sigma = torch.linalg.svdvals(matrix)
    found = (sigma.square() - 1).abs().amax()
    bound = orthogonality_bound(kernel, stride, dilation=dilation, groups=groups)
    assert found <= bound + 100 * len(sigma) * eps(dtype)
    # The bound of the paper is never sharper.
    penalty = orthogonality_penalty(kernel, stride, dilation=dilation, groups=groups)
    taps = prod(2 * ((dilation * (k - 1)) // stride) + 1 for k in size[2:])
    assert bound <= taps * penalty.sqrt() + 100 * eps(dtype)


@pytest.mark.parametrize(
    ("shape", "stride"), [((4, 4, 3), 1), ((4, 8, 3), 1), ((8, 4, 3), 1), ((16, 4, 4), 2), ((8, 4, 3), 2)]
)
def test_the_bound_of_an_isometry_and_of_an_adjoint_is_rounding_error(shape, stride):
    out, channels, taps = shape
    conv = OrthogonalConv2d(channels, out, taps, stride=stride, padding_mode="circular", dtype=torch.float64)
    kernel = conv.spatial_kernel().detach()
    allowed = 10 * kernel[0].numel() * eps(torch.float64)
    assert orthogonality_bound(kernel, stride) <= allowed
    assert orthogonality_penalty(kernel, stride) <= allowed**2
    rounded = orthogonality_bound(kernel.to(torch.bfloat16), stride)
    assert rounded.dtype == torch.float32
    assert 1e-4 < rounded < 10 * kernel[0].numel() * eps(torch.bfloat16)


def test_the_penalty_draws_a_kernel_to_an_isometry():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
    optimizer = torch.optim.Adam([kernel], lr=0.02)
    before = orthogonality_penalty(kernel).detach()
    for _ in range(100):
        optimizer.zero_grad()
        orthogonality_penalty(kernel).backward()
        optimizer.step()
    assert orthogonality_penalty(kernel) < 0.05 * before


def test_the_penalty_is_the_square_of_the_error_of_the_matrix_a_pixel():
    kernel = torch.randn(3, 4, 3, 3, dtype=torch.float64)
    matrix = operator_matrix(circular(kernel, 1, 1, 1), (4, 6, 6), dtype=torch.float64)
    error = matrix @ matrix.mT - torch.eye(len(matrix), dtype=torch.float64)
    expected = error.square().sum() / 36
    assert (orthogonality_penalty(kernel) - expected).abs() <= 1e4 * eps(torch.float64) * expected


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (torch.ones(3, 3), {}, r"kernel \(out, in, \*kernel_size\), got shape \(3, 3\)"),
        (torch.ones(3, 3, 0), {}, r"kernel \(out, in, \*kernel_size\)"),
        (torch.ones(3, 3, 2), {"stride": 0}, "stride of 1 integers of at least 1, got 0"),
        (torch.ones(3, 3, 2), {"stride": (1, 1)}, "stride of 1 integers"),
        (torch.ones(3, 3, 2), {"dilation": 1.5}, "dilation of 1 integers"),
        (torch.ones(3, 3, 2), {"groups": 2}, "groups that divide the 3 outputs, got 2"),
        (torch.ones(1, 1, 1, 1, 1, 1), {}, "1 to 3 sides"),
    ],
)
def test_what_is_no_kernel_or_option_is_refused(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        orthogonality_bound(kernel, **options)

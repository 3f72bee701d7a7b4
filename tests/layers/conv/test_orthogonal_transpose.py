"""Adjoints of orthogonal convolutions, zeros around an image, and strides with dilation."""

import pytest
import torch
import torch.nn.functional as F
from strategies import eps
from torch import nn

from unitary_layers import (
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConv3d,
    OrthogonalConvTranspose1d,
    OrthogonalConvTranspose2d,
    OrthogonalConvTranspose3d,
    UnitaryLinear,
    attach,
    projunn_step,
    revert,
)
from unitary_layers.linalg.signal.grid import fold_periodic, pad_periodic
from unitary_layers.testing import assert_isometry, operator_matrix

CONVOLUTIONS = {1: OrthogonalConv1d, 2: OrthogonalConv2d, 3: OrthogonalConv3d}
TRANSPOSED = {1: OrthogonalConvTranspose1d, 2: OrthogonalConvTranspose2d, 3: OrthogonalConvTranspose3d}
MAPS = {  # channels before and after, options of the convolution, size of its input
    "local": (4, 4, {"kernel_size": 3}, (5, 4)),
    "even": (4, 8, {"kernel_size": 4}, (6, 5)),
    "larger than the image": (2, 2, {"kernel_size": 5}, (2, 3)),
    "strided": (2, 8, {"kernel_size": 3, "stride": 2}, (4, 6)),
    "strided, no shift": (2, 8, {"kernel_size": 2, "stride": 2}, (4, 6)),
    "fewer": (4, 6, {"kernel_size": (3, 4), "stride": (1, 2)}, (4, 6)),
    "dilated": (4, 4, {"kernel_size": 3, "dilation": 2, "groups": 2}, (7,)),
    "strided and dilated": (2, 6, {"kernel_size": 4, "stride": 3, "dilation": 2}, (9,)),
    "zeros": (4, 4, {"kernel_size": 3, "padding_mode": "zeros"}, (5, 4)),
    "zeros, strided": (2, 8, {"kernel_size": 4, "stride": 2, "padding_mode": "zeros"}, (4, 6)),
    "full": (4, 4, {"input_size": (4, 6), "transform": "basis"}, (4, 6)),
    "full by fft": (2, 8, {"input_size": (5, 4), "transform": "fft"}, (5, 4)),
    "full, strided": (2, 8, {"input_size": 6, "stride": 2, "groups": 2}, (6, 6)),
    "volume": (2, 2, {"kernel_size": 2}, (2, 3, 2)),
}
ISOMETRIES = [name for name in MAPS if name != "fewer" and "zeros" not in name]


def pair(name, dtype=torch.float64):
    """A convolution, and a transposed one that shares its parameters."""
    there, back, options, size = MAPS[name]
    conv = CONVOLUTIONS[len(size)](there, back, dtype=dtype, bias=False, **options)
    if "input_size" in options:
        options = options | {"input_size": tuple(n // s for n, s in zip(size, conv.stride, strict=True))}
    transposed = TRANSPOSED[len(size)](back, there, dtype=dtype, bias=False, **options)
    for parameter, value in conv.named_parameters():
        setattr(transposed, parameter, value)
    return conv, transposed, (there, *size)


@pytest.mark.parametrize("name", MAPS)
def test_the_matrix_of_the_adjoint_is_the_transposed_one(name):
    conv, transposed, shape = pair(name)
    matrix = operator_matrix(conv, shape, dtype=torch.float64)
    output = tuple(conv(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    tolerance = 10 * max(matrix.shape) * eps(torch.float64)
    for adjoint in (transposed, conv.adjoint):
        assert (operator_matrix(adjoint, output, dtype=torch.float64) - matrix.mT).abs().max() <= tolerance
    x = torch.randn(*shape, dtype=torch.float64)
    assert torch.equal(transposed.adjoint(x), conv(x))
    sigma = torch.linalg.svdvals(matrix)
    assert sigma.max() <= 1 + tolerance
    assert (sigma.min() >= 1 - tolerance) == ("zeros" not in name)


@pytest.mark.parametrize("name", ISOMETRIES)
def test_the_adjoint_of_an_isometry_undoes_it(name):
    conv, transposed, shape = pair(name)
    x = torch.randn(3, *shape, dtype=torch.float64)
    for adjoint in (transposed, conv.adjoint):
        assert (adjoint(conv(x)) - x).abs().max() <= 10 * x[0].numel() * eps(torch.float64)


@pytest.mark.parametrize("name", ["strided", "full"])
def test_a_decoder_is_an_isometry(name):
    _, transposed, shape = pair(name, torch.float32)
    small = tuple(n // s for n, s in zip(shape[1:], transposed.stride, strict=True))
    assert_isometry(transposed, (transposed.in_channels, *small))


def test_zeros_around_an_image_are_no_isometry():
    torch.manual_seed(0)
    layer = OrthogonalConv2d(4, 4, 3, padding=1, padding_mode="zeros")
    with pytest.raises(AssertionError, match="not an isometry: distances change"):
        assert_isometry(layer, (4, 6, 6))
    x = torch.randn(2, 4, 6, 6)
    y = F.conv2d(x, layer.spatial_kernel(), layer.bias, padding=1)
    assert (layer(x) - y).abs().max() <= 100 * eps(torch.float32)
    model = nn.Sequential(layer)
    y = model(x)
    revert(model)
    assert model[0].padding_mode == "zeros"
    assert (model(x) - y).abs().max() <= 100 * eps(torch.float32)


def test_folding_is_the_adjoint_of_padding():
    x, y = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 16, 5 + 3, dtype=torch.float64)
    padded, folded = pad_periodic(x, (9, 0), (3, 3)), fold_periodic(y, (9, 0), (3, 3))
    assert ((padded * y).sum() - (x * folded).sum()).abs() <= 1e3 * eps(torch.float64)


def test_a_tied_autoencoder_learns_and_stays_its_own_inverse():
    torch.manual_seed(0)
    conv, transposed, shape = pair("strided", torch.float32)
    model = nn.ModuleList([conv, transposed])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    x, before = torch.randn(4, *shape), conv.weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        z = conv(x)
        (z.abs().mean() + (transposed(z.relu()) - x).square().mean()).backward()
        optimizer.step()
    assert (conv.weight - before).norm() > 0.05
    assert (transposed(conv(x)) - x).abs().max() <= 100 * x[0].numel() * eps(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_adjoint_of_a_linear_layer(dtype):
    layer, z = UnitaryLinear(3, 5, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    assert (layer.adjoint(layer(z) - layer.value("bias")) - z).abs().max() <= 50 * eps(dtype)


def test_an_adjoint_beside_a_factored_layer_adds_its_gradient():
    layer = OrthogonalConv2d(4, 4, input_size=4, gradient="factored", dtype=torch.float64)
    twin = OrthogonalConv2d(4, 4, input_size=4, dtype=torch.float64)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    for conv in (layer, twin):
        (conv.adjoint(conv(x).tanh()) * x).sum().backward()
        projunn_step(conv)
    assert (layer.weight_pairs - twin.weight_pairs).abs().max() <= 1e-10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": 1}, r"padding to be one of \['same'\], got 1"),  # whose output would have an odd size
        ({"padding": 1, "output_padding": 0, "kernel_size": 5}, "padding to be one of"),
        ({"padding": 1, "output_padding": 2}, r"output_padding=\(1, 1\) with padding=\(1, 1\), got output_padding=2"),
        ({"gradient": "factored"}, 'expected gradient="dense" of a transposed convolution'),
        ({"padding_mode": "reflect"}, "which keeps norms"),
        ({"kernel_size": None, "input_size": 4, "output_padding": 1}, "no output_padding with full support, got 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OrthogonalConvTranspose2d(4, 4, **{"kernel_size": 3, "stride": 2} | options)


@pytest.mark.parametrize(
    "options", [{"padding": 1, "output_padding": 1}, {"padding": (1, 1), "output_padding": (1, 1)}, {}]
)
def test_the_size_is_that_of_torch_where_it_is_given(options):
    layer, x = OrthogonalConvTranspose2d(16, 4, 3, 2, **options), torch.randn(2, 16, 3, 4)
    plain = nn.ConvTranspose2d(16, 4, 3, 2, padding=1, output_padding=1)
    assert layer(x).shape == plain(x).shape == (2, 4, 6, 8)
    assert torch.equal(layer(x, output_size=[6, 8]), layer(x))
    with pytest.raises(ValueError, match=r"output_size \(6, 8\), got \(7, 8\)"):
        layer(x, output_size=[7, 8])
    assert layer(x[0]).shape == (4, 6, 8)
    with pytest.raises(ValueError, match="OrthogonalConvTranspose2d: expected 16 channels"):
        layer(x[:, :4])
    with pytest.raises(ValueError, match=r"OrthogonalConvTranspose2d\.adjoint: expected 4 channels"):
        layer.adjoint(x)

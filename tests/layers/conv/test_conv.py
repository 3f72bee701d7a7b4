"""Orthogonal convolutions: the operator's dense matrix, torch's convolution with the same kernel, options, errors."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unitary_layers import OrthogonalConv1d, OrthogonalConv2d, OrthogonalConv3d, UpdateRule, support_penalty
from unitary_layers.testing import assert_unitary, operator_matrix
from unitary_layers.training import unitary_weights

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TORCHS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSFORMS = ("basis", "fft")


def by_torch(layer, x):
    """A full-support convolution by torch: pad by all but one pixel behind each side, and apply the spatial kernel."""
    padded = F.pad(x, [w for n in reversed(layer.input_size) for w in (0, n - 1)], mode="circular")
    return CONVOLUTIONS[layer.sides](padded, layer.spatial_kernel(), layer.bias, layer.stride, 0, 1, layer.groups)


def assert_orthogonal(layer, size):
    """The dense matrix is orthogonal, or has orthonormal rows or columns, to 10 (n + 1) eps (Frobenius norm)."""
    shape = (layer.in_channels, *size)
    assert_unitary(operator_matrix(layer, shape, dtype=layer.weight.dtype))


def train(layer, size, steps):
    x = torch.randn(4, layer.in_channels, *size, dtype=layer.weight.dtype)
    target = torch.randn(4, layer.out_channels, *layer(x).shape[2:], dtype=layer.weight.dtype)
    first = copy.deepcopy(layer.state_dict())
    for _ in range(steps):
        (layer(x) - target).square().mean().backward()
        layer.projunn_step()
    after = layer.state_dict()
    for weight in unitary_weights(layer):
        rigid = weight.matrix.size(-1) == 1 and not weight.is_complex  # 1 or -1
        idle = weight.name == "shifts" and all(n == 1 for n in size)  # where there is no next pixel
        assert rigid or idle or not torch.equal(first[weight.name], after[weight.name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_full_support_is_orthogonal_for_every_parity(transform, dtype):
    for size in itertools.product(range(1, 10), range(1, 9)):
        rule = UpdateRule("DT"[sum(size) % 2], rank=1 + size[0] % 2, lr=0.3, seed=size[0])
        layer = OrthogonalConv2d(2, 2, input_size=size, transform=transform, dtype=dtype, update=rule)
        assert_orthogonal(layer, size)
        x = torch.randn(2, 2, *size, dtype=dtype)
        scale = 10 * layer.weight.size(-1) * x[0].numel() * torch.finfo(dtype).eps
        assert (layer(x) - by_torch(layer, x)).abs().max() <= scale
        train(layer, size, steps=3)  # of two steps of one length the second may undo the first
        assert_orthogonal(layer, size)


@pytest.mark.slow
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("variant", ["D", "T"])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (9, 8), (5, 5)])
def test_full_support_is_orthogonal_after_a_hundred_updates(size, variant, transform):
    rule = UpdateRule(variant, rank=2, lr=0.3, retract_every=0)
    layer = OrthogonalConv2d(3, 3, input_size=size, transform=transform, update=rule)
    train(layer, size, steps=100)
    assert_orthogonal(layer, size)
    x = torch.randn(2, 3, *size)
    assert (layer(x) - by_torch(layer, x)).abs().max() <= 10 * 3 * x[0].numel() * torch.finfo(x.dtype).eps


OPTIONS = [  # sides, channels in and out, size, further options
    (2, 2, 4, (4, 6), {}),
    (2, 4, 2, (4, 6), {}),
    (2, 2, 8, (4, 6), {"stride": 2}),
    (2, 2, 4, (4, 6), {"stride": 2}),
    (2, 4, 4, (3, 4), {"groups": 2}),
    (2, 2, 12, (4, 6), {"groups": 2, "stride": 2}),
    (2, 2, 3, (4, 6), {"stride": (1, 3)}),
    (1, 3, 3, (7,), {}),
    (1, 2, 4, (8,), {"stride": 2}),
    (3, 2, 2, (2, 3, 4), {}),
]
LAYERS = {1: OrthogonalConv1d, 2: OrthogonalConv2d, 3: OrthogonalConv3d}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("sides", "c_in", "c_out", "size", "options"), OPTIONS)
def test_full_support_with_every_option(sides, c_in, c_out, size, options, transform):
    layer = LAYERS[sides](c_in, c_out, input_size=size, transform=transform, dtype=torch.float64, **options)
    layer.bias.data.normal_()
    assert_orthogonal(layer, size)
    x = torch.randn(2, c_in, *size, dtype=torch.float64)
    assert (layer(x) - by_torch(layer, x)).abs().max() <= 1000 * x[0].numel() * torch.finfo(x.dtype).eps
    train(layer, size, steps=2)
    assert_orthogonal(layer, size)
    again = LAYERS[sides](c_in, c_out, input_size=size, dtype=torch.float64, **options)
    again.load_spatial_kernel_(layer.spatial_kernel().detach())
    again.bias.data.copy_(layer.bias)
    assert (layer(x) - again(x)).abs().max() <= 1000 * x[0].numel() * torch.finfo(x.dtype).eps


LOCAL = [  # sides, channels in and out, taps, size, further options
    (2, 4, 4, 3, (5, 6), {}),
    (2, 2, 6, 3, (5, 6), {}),
    (2, 6, 2, 3, (5, 6), {"groups": 2}),
    (2, 4, 4, 2, (5, 4), {}),
    (2, 4, 4, (1, 3), (4, 4), {}),
    (2, 5, 5, 1, (2, 2), {}),
    (2, 4, 4, 3, (7, 5), {"dilation": 2}),
    (2, 1, 1, 3, (4, 4), {}),
    (2, 3, 5, 5, (1, 1), {}),
    (2, 2, 8, 3, (4, 6), {"stride": 2}),
    (2, 2, 4, 3, (4, 6), {"stride": 2}),
    (2, 2, 10, 3, (4, 6), {"stride": 2}),
    (2, 3, 16, 7, (2, 4), {"stride": 2}),
    (2, 2, 4, 2, (4, 6), {"stride": 2}),
    (1, 3, 3, 3, (7,), {}),
    (3, 2, 2, 2, (2, 3, 4), {}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("sides", "c_in", "c_out", "taps", "size", "options"), LOCAL)
def test_local_support(sides, c_in, c_out, taps, size, options, dtype):
    layer = LAYERS[sides](c_in, c_out, taps, dtype=dtype, update=UpdateRule(lr=0.1, rank=1), **options)
    assert layer.spatial_kernel().shape == (c_out, c_in // layer.groups, *layer.kernel_size)
    for _ in range(2):
        assert_orthogonal(layer, size)
        assert_orthogonal(layer, tuple(2 * n for n in size))  # and at another size
        train(layer, size, steps=19)  # an odd number: on a circle as many steps to and fro lead back to the same bits


@pytest.mark.parametrize(
    ("c_in", "c_out", "taps", "options", "weight", "shifts"),
    [
        (4, 4, 3, {}, (1, 4, 4), (4, 4, 2)),
        (2, 6, 3, {}, (1, 6, 6), (4, 6, 3)),
        (6, 2, (1, 2), {"groups": 2}, (2, 1, 3), (2, 3, 1)),
        (3, 16, 7, {"stride": 2}, (1, 16, 16), (10, 4, 2)),
        (1, 1, 3, {}, (1, 1, 1), None),
        (4, 4, 2, {"stride": 2}, (1, 4, 16), None),
    ],
)
def test_matrices_of_a_local_kernel_are_no_larger_than_what_they_say(c_in, c_out, taps, options, weight, shifts):
    layer = OrthogonalConv2d(c_in, c_out, taps, **options)
    assert layer.weight.shape == weight
    assert (None if layer.shifts is None else tuple(layer.shifts.shape)) == shifts


@pytest.mark.parametrize(("sides", "c_in", "c_out", "taps", "size", "options"), LOCAL[:5] + LOCAL[-2:])
def test_local_support_is_torchs_convolution(sides, c_in, c_out, taps, size, options):
    """Padded circularly and with padding="same", without a stride, for which torch has no such padding."""
    size = tuple(n + 2 for n in size)
    layer = LAYERS[sides](c_in, c_out, taps, dtype=torch.float64, **options)
    reference = TORCHS[sides](
        c_in, c_out, taps, padding="same", padding_mode="circular", dtype=torch.float64, **options
    )
    reference.load_state_dict({"weight": layer.spatial_kernel(), "bias": layer.bias.data.normal_()})
    x = torch.randn(2, c_in, *size, dtype=torch.float64)
    assert (layer(x) - reference(x)).abs().max() <= 100 * x[0].numel() * torch.finfo(x.dtype).eps
    assert torch.equal(layer(x[0]), layer(x)[0])


def test_the_default_start_of_full_support_is_local():
    layer = OrthogonalConv2d(4, 4, input_size=6, dtype=torch.float64)
    kernel = layer.spatial_kernel()
    assert support_penalty(kernel, 3) <= 100 * torch.finfo(kernel.dtype).eps
    assert support_penalty(kernel, 1) > 0.1  # and not just one tap
    assert support_penalty(OrthogonalConv2d(4, 4, input_size=6, init="haar").spatial_kernel(), 3) > 0.5


def test_the_penalty_pulls_a_kernel_into_its_window():
    layer = OrthogonalConv2d(3, 3, input_size=5, init="haar", update=UpdateRule(lr=0.5, rank=2))
    first = support_penalty(layer.spatial_kernel(), 3).detach()
    for _ in range(60):
        support_penalty(layer.spatial_kernel(), 3).backward()
        layer.projunn_step()
    assert support_penalty(layer.spatial_kernel(), 3) < first / 2
    assert_orthogonal(layer, (5, 5))


def test_the_kernel_of_torchs_convolution_is_projected():
    torchs = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular", bias=False, dtype=torch.float64)
    nn.init.dirac_(torchs.weight)
    torchs.weight.data.mul_(2.0)  # twice the identity, of which the identity is nearest
    layer = OrthogonalConv2d(3, 3, input_size=5, bias=False, dtype=torch.float64)
    layer.load_spatial_kernel_(torchs.weight, padding=1)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    assert (layer(x) - torchs(x) / 2).abs().max() <= 1000 * torch.finfo(x.dtype).eps


def test_constants_follow_the_weights():
    """A basis in float64 is computed anew, not cast; one from the meta device is filled."""
    layer = OrthogonalConv2d(2, 2, input_size=3).double()
    assert_unitary(layer._constants["basis"])
    assert layer._constants["basis"].dtype == torch.float64
    for transform in TRANSFORMS:
        source = OrthogonalConv2d(2, 2, input_size=(3, 4), transform=transform)
        with torch.device("meta"):
            meta = OrthogonalConv2d(2, 2, input_size=(3, 4), transform=transform)
        x = torch.randn(1, 2, 3, 4)
        emptied = copy.deepcopy(meta).to_empty(device="cpu")
        emptied.load_state_dict(source.state_dict())
        assert torch.equal(emptied(x), source(x))
        meta.load_state_dict(source.state_dict(), assign=True)
        assert torch.equal(meta(x), source(x))


def test_channels_last_keeps_the_weights_row_major():
    layer = OrthogonalConv2d(4, 4, input_size=4).to(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous()
    assert layer.weight_pairs.is_contiguous()
    x = torch.randn(2, 4, 4, 4)
    assert torch.equal(layer(x.to(memory_format=torch.channels_last)), layer(x))


def test_the_local_kernel_is_exact_under_autocast():
    layer = OrthogonalConv2d(4, 4, 3)
    exact = layer.spatial_kernel()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.spatial_kernel(), exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected input_size with kernel_size=None"),
        ({"input_size": 5, "stride": 2}, r"input_size in multiples of stride=\(2, 2\), got \(5, 5\)"),
        ({"input_size": 4, "transform": "dct"}, "transform to be one of .* got transform='dct'"),
        ({"input_size": 4, "dilation": 2}, r"no dilation .* dilation=\(2, 2\)"),
        ({"kernel_size": 1, "stride": 2}, r"kernel_size of at least stride=\(2, 2\), got \(1, 1\)"),
        ({"kernel_size": 3, "stride": 2, "dilation": 2}, r"without a factor in common .* stride=\(2, 2\)"),
        ({"kernel_size": 3, "input_size": 4}, "input_size and transform belong to kernel_size=None"),
        ({"kernel_size": 3, "padding": 0}, r"padding to be one of \['same', \(1, 1\), 1\], got 0"),
        ({"kernel_size": 3, "padding_mode": "reflect"}, "padding_mode='circular', which keeps norms, .* got 'reflect'"),
        ({"input_size": 4, "padding_mode": "zeros"}, "as large as the image, got 'zeros'"),
        ({"kernel_size": 0}, r"kernel_size to be an integer of at least 1, or 2 of them, got 0"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size .* or 2 of them, got \(3, 3, 3\)"),
        ({"kernel_size": 3, "groups": 3}, "channels that groups divides, got in_channels=4, out_channels=4, groups=3"),
        ({"kernel_size": 3, "dtype": torch.complex64}, "expected a real dtype, got torch.complex64"),
        ({"kernel_size": 3, "init": "orthogonal"}, "init to be a function or one of .* got 'orthogonal'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OrthogonalConv2d(4, 4, **options)


def test_inputs_that_do_not_fit_are_refused():
    layer = OrthogonalConv2d(4, 4, input_size=(4, 6))
    with pytest.raises(ValueError, match=r"input_size=\(4, 6\), got input of size \(6, 4\)"):
        layer(torch.zeros(1, 4, 6, 4))
    with pytest.raises(ValueError, match="expected 4 channels, got input of shape"):
        layer(torch.zeros(1, 3, 4, 6))
    with pytest.raises(ValueError, match=r"3D \(unbatched\) or 4D input, got 2D"):
        layer(torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"multiples of the stride \(2, 2\), got \(5, 4\)"):
        OrthogonalConv2d(4, 4, 3, stride=2)(torch.zeros(1, 4, 5, 4))


def test_kernels_that_do_not_fit_are_refused_and_nothing_changes():
    layer = OrthogonalConv2d(4, 4, input_size=4)
    before = layer.weight.clone()
    for kernel, message in (
        (torch.zeros(4, 3, 3, 3), r"a kernel \(4, 4\) with at most \(4, 4\) taps, got shape"),
        (torch.zeros(4, 4, 5, 3), "taps, got shape"),
        (torch.full((4, 4, 3, 3), torch.nan), "finite kernel, got NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.load_spatial_kernel_(kernel)
    assert torch.equal(layer.weight, before)
    with pytest.raises(ValueError, match=r"full support .* got a local one"):
        OrthogonalConv2d(4, 4, 3).load_spatial_kernel_(torch.zeros(4, 4, 3, 3))


@pytest.mark.parametrize("sides", [1, 2, 3])
@pytest.mark.parametrize(
    ("taps", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 1, 2), (2, 1, 2), (3, 2, 1), (4, 2, 1)]
)
def test_a_number_of_pixels_pads_as_torch_does(sides, taps, stride, dilation):
    options = {"stride": stride, "padding": dilation * (taps - 1) // 2, "dilation": dilation, "dtype": torch.float64}
    layer = LAYERS[sides](2, 2, taps, **options)
    reference = TORCHS[sides](2, 2, taps, padding_mode="circular", **options)
    reference.load_state_dict({"weight": layer.spatial_kernel(), "bias": layer.bias})
    x = torch.randn(2, 2, *[6] * sides, dtype=torch.float64)
    y = layer(x)
    assert y.shape == reference(x).shape
    assert (y - reference(x)).abs().max() <= 100 * x[0].numel() * torch.finfo(x.dtype).eps


@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": 4, "dilation": 3}, {"kernel_size": (3, 2)}])
def test_a_number_of_pixels_is_refused_where_torch_would_lose_one(options):
    padding = OrthogonalConv2d(2, 2, **options).support.padding()[0]
    assert nn.Conv2d(2, 2, padding=padding, **options)(torch.zeros(1, 2, 9, 9)).shape[-1] == 8
    for given in (tuple(padding), padding, *({padding[0]} if len(set(padding)) == 1 else ())):
        with pytest.raises(ValueError, match=r"expected padding to be one of \['same'\], got "):
            OrthogonalConv2d(2, 2, padding=given, **options)


def test_padding_as_in_torch_is_taken():
    assert OrthogonalConv2d(4, 4, 3, padding=1).kernel_size == (3, 3)
    assert OrthogonalConv2d(4, 4, (1, 5), padding=(0, 2)).kernel_size == (1, 5)
    assert OrthogonalConv2d(4, 4, 7, padding="same").kernel_size == (7, 7)


def test_the_matrix_is_unitary_at_all_frequencies():
    layer = OrthogonalConv2d(3, 3, input_size=(3, 4), groups=3, dtype=torch.float64)
    assert layer.matrix.shape == (3, 4, 3, 1, 1)
    assert_unitary(layer.matrix)
    assert torch.equal(layer.matrix[1, 1], layer.matrix[2, 3].conj())
    assert OrthogonalConv2d(3, 3, 3).matrix.shape == (1, 3, 3)


@pytest.mark.parametrize("transform", ["basis", "fft"])
def test_autocast_leaves_double_precision_alone(transform):
    layer = OrthogonalConv2d(2, 2, input_size=(4, 5), transform=transform, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(1, 2, 4, 5, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("transform", ["basis", "fft"])
def test_parameters_of_a_higher_precision_are_used_in_it(transform):
    options = {"input_size": (4, 5), "transform": transform}
    layer, exact = (OrthogonalConv2d(2, 2, dtype=dtype, **options) for dtype in (torch.float32, torch.float64))
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    found = torch.func.functional_call(layer, dict(exact.named_parameters()), (x,))
    assert (found - exact(x)).abs().max() <= 100 * x[0].numel() * torch.finfo(x.dtype).eps


@pytest.mark.parametrize("there", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to_empty(device="cpu")])
def test_the_transform_is_exact_again_after_a_cast(there):
    layer = OrthogonalConv2d(4, 4, input_size=8)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    there(layer).float().load_state_dict(state)
    assert_orthogonal(layer, (8, 8))


@pytest.mark.parametrize("init", ["dirac", "identity"])
@pytest.mark.parametrize(
    ("sides", "channels", "taps", "options"),
    [
        (1, 4, 3, {}),
        (1, 6, 5, {"groups": 3}),
        (2, 4, 3, {}),
        (2, 2, (3, 5), {"dilation": 2}),
        (3, 4, 3, {"groups": 2}),
        (2, 4, None, {"input_size": 6}),
        (1, 3, None, {"input_size": 5}),
    ],
)
def test_a_delta_is_a_start(sides, channels, taps, options, init):
    layer = LAYERS[sides](channels, channels, taps, bias=False, init=init, dtype=torch.float64, **options)
    x = torch.randn(2, channels, *(options.get("input_size", 6),) * sides, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x)
    if taps is not None:
        kernel = layer.spatial_kernel()
        torch.testing.assert_close(kernel, torch.nn.init.dirac_(torch.empty_like(kernel), layer.groups))


def test_a_delta_of_an_odd_number_of_channels_is_centred_but_for_one():
    layer = OrthogonalConv2d(5, 5, 3, bias=False, init="dirac", dtype=torch.float64)
    x = torch.randn(1, 5, 6, 6, dtype=torch.float64)
    equal = (layer(x) - x).abs().amax(dim=(0, 2, 3)) < 1e-12
    assert int(equal.sum()) == 4
    assert_orthogonal(layer, (6, 6))

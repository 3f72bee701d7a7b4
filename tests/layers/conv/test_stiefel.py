"""Convolutions with orthonormal kernels beside torch's: the same map, options, errors and state; and their bounds."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_rounding, without_our_buffers
from torch import Tensor, nn

import unitary_layers
from unitary_layers import (
    StiefelConv1d,
    StiefelConv2d,
    StiefelConv3d,
    StiefelConvTranspose1d,
    StiefelConvTranspose2d,
    nearest_unitary,
    projunn_step,
    unitary_weights,
)
from unitary_layers.layers.conv.reads import most_reads
from unitary_layers.testing import assert_isometry, assert_unitary, operator_matrix

MODES = ("zeros", "reflect", "replicate", "circular")
CONVS = {
    "plain": (2, {"kernel_size": 3}),
    "mixed": (2, {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)}),
    "strided 1 x 1": (2, {"kernel_size": 1, "stride": 2}),
    "groups": (2, {"kernel_size": 2, "groups": 2, "bias": False}),
    "a channel a group": (2, {"kernel_size": 3, "groups": 4, "padding": 1}),
    "valid": (2, {"kernel_size": (2, 3), "padding": "valid", "padding_mode": "reflect"}),
    "sequence": (1, {"kernel_size": 4, "stride": 3, "padding": 2}),
    "volume": (3, {"kernel_size": (1, 2, 3), "padding": 1, "padding_mode": "replicate"}),
    **{f"same, {m}": (2, {"kernel_size": (2, 3), "padding": "same", "dilation": 2, "padding_mode": m}) for m in MODES},
    **{f"strided, {m}": (2, {"kernel_size": 3, "padding": (1, 2), "stride": 2, "padding_mode": m}) for m in MODES},
}
TRANSPOSES = {
    "plain": (2, {"kernel_size": 3}),
    "mixed": (2, {"kernel_size": (3, 2), "stride": (2, 3), "padding": 1, "output_padding": (1, 2), "dilation": (2, 1)}),
    "groups": (2, {"kernel_size": 2, "stride": 2, "groups": 2, "bias": False}),
    "sequence": (1, {"kernel_size": 4, "stride": 3, "padding": 2}),
    "volume": (3, {"kernel_size": 2, "stride": (1, 2, 1)}),
}
CASES = [("Conv", *case) for case in CONVS.values()] + [("ConvTranspose", *case) for case in TRANSPOSES.values()]
NAMES = [*CONVS, *(f"transposed, {name}" for name in TRANSPOSES)]
every_case = pytest.mark.parametrize(("kind", "sides", "options"), CASES, ids=NAMES)


def pair(
    kind: str, sides: int, options: dict, channels: tuple[int, int] = (4, 8)
) -> tuple[nn.Module, nn.Module, Tensor]:
    """Our layer, torch's with its state, and an input, in float64."""
    torch.manual_seed(1)
    ours = getattr(unitary_layers, f"Stiefel{kind}{sides}d")(*channels, dtype=torch.float64, **options)
    theirs = getattr(nn, f"{kind}{sides}d")(*channels, dtype=torch.float64, **options)
    if ours.bias is not None:
        nn.init.normal_(ours.bias)
    theirs.load_state_dict(without_our_buffers(ours))
    return ours, theirs, torch.randn(3, channels[0], *(6, 5, 4)[:sides], dtype=torch.float64)


@every_case
def test_it_is_torchs_layer_with_an_orthonormal_kernel(kind, sides, options):
    ours, theirs, x = pair(kind, sides, options)
    assert_unitary(ours)
    for inputs in (x, x[0]):  # with a batch and without
        assert torch.equal(ours(inputs), theirs(inputs))
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    unfolded = theirs.weight.view(ours.groups, len(theirs.weight) // ours.groups, -1)
    assert torch.equal(ours.matrix, unfolded)
    assert torch.equal(ours.spatial_kernel(), theirs.weight)
    assert repr(theirs).partition("(")[2].rstrip(")").replace("'", "") in repr(ours).replace("'", "")
    before = ours.weight.detach().clone()
    projunn_step(ours)
    assert not torch.equal(ours.weight, before)
    assert_unitary(ours)


def slow(x: Tensor, layer: StiefelConv2d, before: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A convolution padded with zeros, pixel by pixel and tap by tap."""
    width, (out, inside, *taps) = x.size(1) // layer.groups, layer.weight.shape
    y = x.new_zeros(len(x), out, *size)
    for o, i, a, b in itertools.product(range(out), range(inside), *map(range, taps)):
        channel = o // (out // layer.groups) * width + i
        for p, q in itertools.product(*map(range, size)):
            row = p * layer.stride[0] + a * layer.dilation[0] - before[0]
            column = q * layer.stride[1] + b * layer.dilation[1] - before[1]
            if 0 <= row < x.size(2) and 0 <= column < x.size(3):
                y[:, o, p, q] += layer.weight[o, i, a, b] * x[:, channel, row, column]
    return y


@torch.no_grad()
def test_it_is_the_sum_over_taps():
    options = {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1), "groups": 2, "bias": False}
    layer, x = StiefelConv2d(4, 6, (2, 3), **options, dtype=torch.float64), torch.randn(2, 4, 4, 5, dtype=torch.float64)
    y = layer(x)
    assert_rounding(y, slow(x, layer, (2, 1), tuple(y.shape[2:])), n=24)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2}, {"stride": (3, 1)}])
def test_a_transposed_one_is_the_adjoint(options):
    conv = StiefelConv2d(4, 6, (3, 2), **options, bias=False, dtype=torch.float64)
    back = StiefelConvTranspose2d(6, 4, (3, 2), **options, bias=False, dtype=torch.float64)
    back.load_state_dict(conv.state_dict())
    size = tuple(conv(torch.zeros(1, 4, 7, 6, dtype=torch.float64)).shape[2:])
    forth = operator_matrix(conv, (4, 7, 6), dtype=torch.float64)
    adjoint = operator_matrix(lambda y: back(y, output_size=(7, 6)), (6, *size), dtype=torch.float64)
    assert_rounding(adjoint, forth.mT.contiguous(), n=24)
    assert back.lipschitz == conv.lipschitz


def test_an_output_size_is_as_in_torch():
    ours, theirs, x = pair("ConvTranspose", 2, {"kernel_size": 3, "stride": 2, "padding": 1})
    for size in ((12, 10), [3, 8, 11, 9], (12, 9)):
        assert torch.equal(ours(x, size), theirs(x, output_size=size))
    assert torch.equal(ours(x[0], output_size=(8, 12, 10)), theirs(x[0], output_size=(8, 12, 10)))
    for size in ((13, 10), (10, 9), (12,), (1, 2, 3, 4, 5)):
        for layer in (ours, theirs):
            with pytest.raises(ValueError, match=r"output.size"):
                layer(x, size)


REFUSED = (
    {"groups": 0},
    {"groups": 3},
    {"padding": "full"},
    {"padding": "same", "stride": 2},
    {"padding_mode": "constant"},
)


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_what_torch_refuses_is_refused(options):
    for layer in (StiefelConv2d, nn.Conv2d):
        with pytest.raises(ValueError, match=r"groups|padding"):
            layer(4, 8, 3, **options)


def test_a_transposed_one_takes_no_other_padding():
    for layer, option in itertools.product((StiefelConvTranspose1d, nn.ConvTranspose1d), ("circular", "reflect")):
        with pytest.raises(ValueError, match="padding"):
            layer(4, 8, 3, padding_mode=option)
    with pytest.raises(ValueError, match="padding to be numbers of pixels, got 'same'"):
        StiefelConvTranspose1d(4, 8, 3, padding="same")


def test_our_own_options_are_refused_in_words():
    with pytest.raises(ValueError, match='gradient="dense" for an orthonormal kernel, got'):
        StiefelConv2d(4, 8, 3, gradient="factored")
    with pytest.raises(ValueError, match="init to be a function or one of"):
        StiefelConv2d(4, 8, 3, init="local")
    with pytest.raises(RuntimeError, match=r"expected 3D \(unbatched\) or 4D input, got shape \(4,\)"):
        StiefelConv2d(4, 8, 3)(torch.zeros(4))


def reads(n: int, k: int, s: int, d: int, pads: tuple[int, int], mode: str) -> int:
    """How often a convolution of a side of n pixels reads the same one, counted."""
    places = F.pad(torch.arange(1.0, n + 1)[None], pads, **({} if mode == "zeros" else {"mode": mode}))[0]
    if len(places) <= d * (k - 1):
        return 0
    read = places.unfold(0, d * (k - 1) + 1, s)[:, ::d].flatten().int()
    return int(torch.bincount(read)[1:].max()) if read.any() else 0


@pytest.mark.parametrize("mode", MODES)
def test_no_pixel_is_read_more_often(mode):
    """See Note [Lipschitz constant of a kernel]; the numbers of zeros and replicated pixels are reached."""
    least = {"reflect": 1, "circular": 0}.get(mode, -99)  # torch's condition
    for k, s, d, pad in itertools.product((1, 2, 3, 5), (1, 2, 3), (1, 2), (0, 1, 2, 3)):
        pads = (pad, pad + pad % 2)
        found = [reads(n, k, s, d, pads, mode) for n in range(max(1, pads[1] + least), 20)]
        bound = most_reads(k, s, d, pads, mode)
        assert max(found) <= bound
        assert max(found) == bound or mode in ("reflect", "circular")
    assert most_reads(3, 1, 1, (1, 1), mode) == {"reflect": 5}.get(mode, 3)


BOUNDS = {
    "plain": ({"padding": 1}, 3),
    "strided": ({"stride": 2, "padding": 1}, 2),
    "as far as the stride": ({"stride": 2, "dilation": 2, "padding": 2}, 3),  # every tap reads the same pixels
    "prime to the stride": ({"stride": 2, "dilation": 3, "padding": 2}, 2),
    "patches": ({"stride": 3}, 1),
    "circular": ({"padding": 1, "padding_mode": "circular"}, 3),
    "replicated": ({"padding": 1, "padding_mode": "replicate"}, 3),
    "reflected": ({"padding": 1, "padding_mode": "reflect"}, 5),
    "wide circular": ({"padding": 3, "padding_mode": "circular"}, 9),
}


@torch.no_grad()
@pytest.mark.parametrize(("options", "bound"), BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("normalize", [False, True])
def test_the_lipschitz_constant_bounds_the_operator(options, bound, normalize):
    layer = StiefelConv2d(2, 18, 3, **options, bias=False, normalize=normalize, dtype=torch.float64)  # an isometry
    assert layer.lipschitz == (1 if normalize else bound)
    norms = []
    for size in ((3, 4), (5, 7)):
        size = [n + 4 * (d - 1) for n, d in zip(size, layer.dilation, strict=True)]
        operator = operator_matrix(layer, (2, *size), dtype=torch.float64)
        norms.append(torch.linalg.matrix_norm(operator, ord=2) / layer.lipschitz)
    rounding = 1 + 100 * torch.finfo(torch.float64).eps
    assert max(norms) <= rounding
    if options.get("padding_mode") in (None, "replicate"):
        assert max(norms) >= 1 / rounding  # and no smaller one does
    narrow = StiefelConv2d(3, 2, 3, **options, bias=False, normalize=normalize, dtype=torch.float64)
    operator = operator_matrix(narrow, (3, 7, 8), dtype=torch.float64)
    assert torch.linalg.matrix_norm(operator, ord=2) <= narrow.lipschitz * rounding


def test_a_normalised_layer_is_torchs_with_its_kernel():
    layer, x = StiefelConv2d(4, 8, 3, padding=1, normalize=True), torch.randn(2, 4, 5, 5)
    assert_unitary(layer)
    assert_rounding(layer(x), F.conv2d(x, layer.weight / 3, padding=1), n=36)
    assert_rounding(layer.spatial_kernel(), layer.weight / 3, n=1)
    assert "normalize=True" in repr(layer)


@torch.no_grad()
def test_patches_that_do_not_overlap_make_an_isometry():
    assert_isometry(StiefelConv2d(3, 12, 2, stride=2), (3, 6, 8))
    assert_isometry(StiefelConvTranspose2d(12, 3, 2, stride=2), (12, 3, 4))
    assert_isometry(StiefelConv3d(4, 4, 1), (4, 2, 2, 2))


@every_case
def test_state_dicts_of_torchs_layer_load(kind, sides, options):
    ours, theirs, x = pair(kind, sides, options)
    theirs.reset_parameters()
    with pytest.warns(UserWarning, match=r"nearest unitary matrix is used instead, which is \|W' - W\| / \|W\| ="):
        ours.load_state_dict(theirs.state_dict(), strict=True)
    nearest = nearest_unitary(theirs.weight.detach().view(ours.matrix.shape))
    assert_rounding(ours.matrix, nearest, n=72)
    back = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not back.missing_keys
    assert back.unexpected_keys == ["weight_count"]
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("layer", [StiefelConv1d, StiefelConvTranspose1d])
def test_a_centred_delta_passes_the_image_on(layer):
    x = torch.randn(2, 4, 6)
    for init in ("dirac", "identity"):
        assert torch.equal(layer(4, 4, 3, padding=1, init=init)(x), x)
        for channels in ((2, 4), (4, 2), (2, 12), (12, 2)):  # 6 of 12 have orthonormal columns
            assert_unitary(layer(*channels, 3, init=init))
    plain = nn.init.dirac_(torch.empty(4, 6, 3, 3))
    assert torch.equal(StiefelConv2d(6, 4, 3, init="dirac").weight, plain)
    assert torch.equal(StiefelConv2d(6, 4, (2, 4), init="dirac").weight, nn.init.dirac_(torch.empty(4, 6, 2, 4)))


def test_a_haar_kernel_keeps_the_variance():
    torch.manual_seed(0)
    y = StiefelConv2d(16, 32, 3)(torch.randn(8, 16, 16, 16))
    assert math.isclose(float(y.detach().var()), 1, rel_tol=0.05)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_images_with_channels_last(mode):
    ours, theirs, x = pair("Conv", 2, {"kernel_size": 3, "padding": 1, "padding_mode": mode})
    x = x.contiguous(memory_format=torch.channels_last)
    ours.to(memory_format=torch.channels_last)
    assert ours.weight.is_contiguous()
    y = ours(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_rounding(y, theirs(x), n=36)
    y.square().sum().backward()
    projunn_step(ours)
    assert_unitary(ours)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_network_of_them_can_be_scripted():
    layer, x = StiefelConv2d(4, 8, 3, padding=1, padding_mode="circular"), torch.randn(2, 4, 5, 5)
    assert torch.equal(torch.jit.script(nn.Sequential(layer))(x), layer(x))


def test_a_kernel_takes_longer_steps_of_a_higher_rank():
    """See Note [The step of a kernel]."""
    (weight,) = unitary_weights(StiefelConv2d(16, 48, 3))
    assert (weight.rule.lr, weight.rule.rank) == (1.0, 24)

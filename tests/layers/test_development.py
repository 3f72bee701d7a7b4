"""The development of a path: the product of the exponentials of its steps, and what follows from that."""

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

from unitary_layers import UnitaryDevelopment
from unitary_layers.layers.development import products

AXES, BATCH, POINTS, CHANNELS = 3, 2, 6, 2
SIZE = AXES * POINTS * 8  # of so many factors and terms is an entry
KINDS = [(n, dtype) for dtype in (torch.float64, torch.complex128) for n in (1, 2, 5)]
every_kind = pytest.mark.parametrize(("n", "dtype"), KINDS, ids=str)


def make(n: int = 4, dtype: torch.dtype = torch.float64, **options) -> UnitaryDevelopment:
    return UnitaryDevelopment(AXES, n, CHANNELS, dtype=dtype, **options)


def path_of(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (BATCH, POINTS, AXES)), dtype=torch.float64, generator=generator)


def slow(layer: UnitaryDevelopment, path: Tensor) -> Tensor:
    """The developments up to each point `(batch, seq, channels, n, n)`, an exponential for each step and axis."""
    a = layer.generators()
    z = torch.eye(layer.hidden_size, dtype=a.dtype).expand(len(path), layer.channels, -1, -1)
    found = [z]
    for increment in path.diff(dim=1).unbind(1):
        for axis in range(layer.input_size):
            z = z @ torch.matrix_exp(a[None, :, axis] * increment[:, None, axis, None, None])
        found.append(z)
    return torch.stack(found, 1)


@every_kind
def test_it_is_the_product_of_exponentials(n, dtype):
    layer, path = make(n, dtype), path_of()
    assert_rounding(layer.generators().mH, -layer.generators(), n=n)
    expected = slow(layer, path)
    assert_rounding(layer(path), expected[:, -1], n=SIZE)
    layer.return_sequence = True
    for points in range(1, POINTS + 1):
        assert_rounding(layer(path[:, :points]), expected[:, :points], n=SIZE)


@every_kind
def test_gradients_are_those_of_the_exponentials(n, dtype):
    """Of the unitary weights along the manifold, which is all that a step looks at."""
    layer, path = make(n, dtype), path_of().requires_grad_()
    target = torch.randn(BATCH, CHANNELS, n, n, dtype=dtype)
    results = []
    for z in (layer(path), slow(layer, path)[:, -1]):
        loss = (z * target.conj()).real.sum()
        weight, *rest = torch.autograd.grad(loss, [layer.weight, layer.spectrum, path])
        s = layer.matrix.detach().mH @ (torch.view_as_complex(weight) if dtype.is_complex else weight)
        results.append([s - s.mH, *rest])
    for found, expected in zip(*results, strict=True):
        assert_rounding(found, expected, n=10 * SIZE)


@every_kind
def test_the_node_has_the_gradients_of_the_plain_chain(n, dtype, monkeypatch):
    layer, path = make(n, dtype), path_of().requires_grad_()
    inputs = [path, *layer.parameters()]
    found = torch.autograd.grad(layer(path).abs().square().cumsum(-1).sum(), inputs)
    monkeypatch.setattr(products, "is_transformed", lambda: True)
    expected = torch.autograd.grad(layer(path).abs().square().cumsum(-1).sum(), inputs)
    for mine, theirs in zip(found, expected, strict=True):
        assert_rounding(mine, theirs, n=10 * SIZE)


def test_a_node_keeps_one_matrix_a_step_for_any_number_of_axes():
    kept = []
    for axes in (2, 6):
        layer, sizes = UnitaryDevelopment(axes, 8), {}
        path = torch.randn(4, 50, axes, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t
        ):
            layer(path)
        matrices = 4 * 49 * 8 * 8
        kept.append(sum(t.untyped_storage().nbytes() for t in sizes.values()) / (4 * matrices))
    assert kept[1] - kept[0] < 0.5  # weights, spectra and increments of four more axes
    assert kept[0] < 3.5  # the steps, and those of the products of two, of four, ...


@every_kind
def test_points_that_say_nothing_change_nothing(n, dtype):
    layer, path = make(n, dtype), path_of()
    expected = layer(path)
    assert_rounding(layer(path.repeat_interleave(3, 1)), expected, n=SIZE)
    axis_by_axis = [path[:, :1]]
    for before, after in zip(path.unbind(1), path.unbind(1)[1:], strict=False):
        for axis in range(AXES):
            for share in (0.3, 1.0):  # at any speed along an axis
                here = torch.lerp(before, after, share)
                point = torch.cat([after[:, :axis], here[:, axis : axis + 1], before[:, axis + 1 :]], 1)
                axis_by_axis.append(point.unsqueeze(1))
    assert_rounding(layer(torch.cat(axis_by_axis, 1)), expected, n=SIZE)
    assert_rounding(layer(path + 7), expected, n=10 * SIZE)


@every_kind
def test_a_path_that_goes_on_multiplies(n, dtype):
    layer, path = make(n, dtype), path_of()
    assert_rounding(layer(path[:, :4]) @ layer(path[:, 3:]), layer(path), n=SIZE)


@every_kind
def test_the_path_back_is_the_adjoint(n, dtype):
    """Back along the axes in the reverse order: the axes of a step do not commute."""
    layer, back, path = make(n, dtype), make(n, dtype), path_of()
    with torch.no_grad():
        back.weight.copy_(layer.weight.flip(1))
        back.spectrum.copy_(layer.spectrum.flip(1))
    assert_rounding(back(path.flip(1, 2)), layer(path).mH, n=SIZE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_long_paths_stay_unitary(dtype):
    steps, n = 2000, 5
    layer = UnitaryDevelopment(2, n, dtype=dtype)
    z = layer(torch.randn(2, steps + 1, 2))
    error = torch.linalg.matrix_norm(z.mH @ z - torch.eye(n)).max()
    assert error <= steps * n * torch.finfo(dtype).eps


def test_a_single_point_is_the_identity():
    for options in ({}, {"return_sequence": True}):
        layer = make(**options)
        z = layer(path_of(BATCH, 1, AXES).requires_grad_())
        assert torch.equal(z, torch.eye(4, dtype=torch.float64).expand(z.shape))
        z.sum().backward()
        assert layer.weight.grad.norm() == 0


@pytest.mark.parametrize("sequence", [False, True], ids=["last", "sequence"])
def test_every_form_of_input_is_the_same_path(sequence):
    layer, path = make(return_sequence=sequence), path_of()
    expected = layer(path)
    assert expected.shape == (BATCH, *([POINTS] if sequence else []), CHANNELS, 4, 4)
    assert_rounding(layer(path[0]), expected[0], n=SIZE)
    layer.batch_first = False
    found = layer(path.transpose(0, 1))
    assert_rounding(found.transpose(0, 1) if sequence else found, expected, n=SIZE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("ordered", [False, True])
def test_packed_paths_are_developed_one_by_one(ordered, dtype):
    layer, lengths = make(dtype=dtype), (5, 3, 1) if ordered else (3, 1, 5)
    paths = [path_of(length, AXES, seed=length) for length in lengths]
    packed = pack_sequence(paths, enforce_sorted=ordered)
    expected = torch.stack([layer(path) for path in paths])
    assert_rounding(layer(packed), expected, n=SIZE)
    repeated = pad_sequence([torch.cat([p, p[-1:].expand(5 - len(p), -1)]) for p in paths], batch_first=True)
    assert_rounding(layer(repeated), expected, n=SIZE)
    layer.return_sequence = True
    found, sizes = pad_packed_sequence(layer(packed), batch_first=True)
    assert sizes.tolist() == list(lengths)
    for path, mine in zip(paths, found, strict=True):
        assert_rounding(mine[: len(path)], layer(path), n=SIZE)


def test_compiled_lengths_between_powers_of_two_share_a_graph():
    torch.compiler.reset()
    layer, counter = UnitaryDevelopment(2, 2), CompileCounter()
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for points in (6, 9, 12):  # the second length makes a graph that is open
        path = torch.randn(2, points, 2)
        assert_rounding(compiled(path), layer(path), n=SIZE)
    assert counter.frame_count == 2
    torch.compiler.reset()


REFUSED = {
    "a flat path": (lambda: make()(path_of(5)), ValueError, r"2D \(unbatched\) or 3D input, got 1D"),
    "another number of features": (lambda: make()(path_of(4, 2)), RuntimeError, "expected input_size=3, got 2"),
    "no point": (lambda: make()(path_of(0, 3)), RuntimeError, "at least one point, got a sequence length of 0"),
    "another dtype": (lambda: make()(path_of().float()), RuntimeError, "expected input of torch.float64 .*float32"),
    "a complex path": (
        lambda: make(dtype=torch.complex128)(path_of() * 1j),
        RuntimeError,
        "expected input of torch.float64 .* got torch.complex128",
    ),
    "factored": (lambda: make(gradient="factored"), ValueError, 'gradient="dense": .* no thin factors; got "factored"'),
    "no channels": (lambda: UnitaryDevelopment(3, 4, 0), ValueError, "expected channels >= 1, got 0"),
    "a flag": (lambda: UnitaryDevelopment(3, 4, 1, 1), TypeError, "batch_first should be of type bool, got: int"),
}


@pytest.mark.parametrize(("call", "error", "match"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_take_it_refuses_in_words(call, error, match):
    with pytest.raises(error, match=match):
        call()

"""The unitary convolution on groups: the dense operator, and what follows from it."""

from itertools import permutations

import pytest
import torch
from closeness import assert_rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from torch import Tensor, nn

from unitary_layers import GroupSort, OrthogonalConv2d, UnitaryGroupConv, attach
from unitary_layers.linalg import dihedral_moves, dihedral_views
from unitary_layers.testing import assert_unitary


def dihedral(n: int) -> Tensor:
    """The table of products of r^a s^e, element by element."""
    elements = [(a, e) for e in range(2) for a in range(n)]
    return table_of(elements, lambda g, h: ((g[0] + (-1) ** g[1] * h[0]) % n, (g[1] + h[1]) % 2))


def symmetric(n: int) -> Tensor:
    """That of the permutations of n things."""
    return table_of(list(permutations(range(n))), lambda g, h: tuple(g[i] for i in h))


def quaternions() -> Tensor:
    """That of 1, i, j, k and their negatives, as matrices."""
    i, j = torch.tensor([[1j, 0], [0, -1j]]), torch.tensor([[0, 1.0], [-1, 0]], dtype=torch.complex64)
    half = [torch.eye(2, dtype=torch.complex64), i, j, i @ j]
    elements = [sign * q for sign in (1, -1) for q in half]
    rows = [[next(n for n, q in enumerate(elements) if torch.equal(g @ h, q)) for h in elements] for g in elements]
    return torch.tensor(rows)


def table_of(elements: list, product) -> Tensor:
    return torch.tensor([[elements.index(product(g, h)) for h in elements] for g in elements])


GROUPS = {"D1": dihedral(1), "D4": dihedral(4), "D5": dihedral(5), "S3": symmetric(3), "Q8": quaternions()}
DTYPES = (torch.float64, torch.complex128)
SHAPES = [(6, 6), (5, 5), (5, 3), (2, 4), (1, 1), (1, 3)]


def make(table: Tensor, n: int = 6, m: int = 6, dtype: torch.dtype = torch.float64, moves=None) -> UnitaryGroupConv:
    """A layer that moves by the last elements of the group, of which the last one twice."""
    layer = UnitaryGroupConv(n, m, table.T[[-1, -2, -1]] if moves is None else moves, dtype=dtype)
    nn.init.normal_(layer.bias)
    return layer


def dense(layer: UnitaryGroupConv) -> Tensor:
    """The operator ``(out * size, in * size)``, a Kronecker product a move."""
    size, mixing = layer.moves.size(1), layer.matrix
    eye = torch.eye(size, dtype=mixing.dtype)
    operator = torch.eye(max(mixing.shape) * size, dtype=mixing.dtype)
    for half, move in zip([] if layer.halves is None else layer.value("halves"), layer.moves, strict=False):
        operator = operator + torch.kron(half @ half.mH, eye[move] - eye) @ operator
    mixed = torch.kron(mixing, eye)
    return operator @ mixed if layer.in_channels < layer.out_channels else mixed @ operator


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_dense_operator_with_gradients(group, shape, dtype):
    layer = make(GROUPS[group], *shape, dtype)
    x = torch.randn(2, shape[0], layer.moves.size(1), 2, dtype=dtype, requires_grad=True)
    target = torch.randn(2, shape[1], layer.moves.size(1), 2, dtype=dtype)
    leaves = (x, *layer.parameters())
    slow = (dense(layer) @ x.flatten(1, 2)).unflatten(1, target.shape[1:3]) + layer.value("bias")[:, None, None]
    results = [(y, *torch.autograd.grad((y * target.conj()).real.sum(), leaves)) for y in (layer(x), slow)]
    for found, expected in zip(*results, strict=True):
        assert_rounding(found, expected, n=100)


@given(st.sampled_from(sorted(GROUPS)), st.sampled_from(SHAPES), seeds, st.booleans())
@settings(max_examples=40)
def test_it_is_unitary_and_commutes_with_the_group(group, shape, seed, complex_):
    torch.manual_seed(seed)
    table = GROUPS[group]
    layer = make(table, *shape, torch.complex128 if complex_ else torch.float64)
    operator = dense(layer)
    rows, columns = operator.shape
    gram = operator @ operator.mH if rows < columns else operator.mH @ operator
    assert_rounding(gram, torch.eye(len(gram), dtype=operator.dtype), n=100)
    y = torch.randn(3, shape[1], len(table), dtype=operator.dtype)
    assert_rounding(layer.adjoint(y).flatten(1), y.flatten(1) @ operator.conj(), n=100)
    x = torch.randn(3, shape[0], len(table), dtype=operator.dtype)
    for g in table:  # row g is the permutation h -> g h
        assert_rounding(layer(x[..., g]), layer(x)[..., g], n=100)


def test_an_element_hears_of_products_of_some_moves_alone():
    table = GROUPS["D5"]
    moves = dihedral_moves(5)
    layer = make(table, moves=moves)
    delta = torch.zeros(1, 6, 10, dtype=torch.float64)
    delta[..., 0] = torch.randn(6, dtype=torch.float64)
    heard = {0}
    for move in moves.tolist():
        heard |= {move[g] for g in heard}
    inverse = {int((table[g] == 0).nonzero()) for g in heard}
    y = (layer(delta) - layer.value("bias")[:, None]).abs().amax((0, 1))
    assert {g for g in range(10) if y[g] > 1e-10} == inverse
    assert len(inverse) < 10


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_moves_of_a_polygon_are_products_with_its_turns_and_its_reflection(n):
    turn, back, mirror = 1 % n, (n - 1) % n, n
    assert torch.equal(dihedral_moves(n), dihedral(n).T[[turn, back, mirror]])


def test_a_turn_or_reflection_of_an_image_moves_its_views():
    images, table = torch.randn(2, 3, 5, 5), dihedral(4)
    views = dihedral_views(images)
    assert views.shape == (2, 3, 8, 5, 5)
    assert torch.equal(views[:, :, 0], images)
    for g in range(8):
        turned = (images.flip(-1) if g >= 4 else images).rot90(g % 4, (-2, -1))  # g = r^a s^e of the images
        inverse = int((table[g] == 0).nonzero())
        assert torch.equal(dihedral_views(turned), views[:, :, table[inverse]])


def test_a_network_of_views_is_invariant_before_and_after_training():
    each, over = OrthogonalConv2d(1, 4, 3, padding=1), UnitaryGroupConv(4, 4, dihedral_moves(4))
    images = torch.randn(3, 1, 6, 6)

    def network(x: Tensor) -> Tensor:
        views = dihedral_views(x)
        hidden = each(views.movedim(2, 1).flatten(0, 1)).unflatten(0, (len(x), 8)).movedim(1, 2)
        return GroupSort()(over(hidden)).mean((2, 3, 4))

    def assert_invariant() -> None:
        for turned in (images.rot90(1, (-2, -1)), images.flip(-1), images.flip(-2).rot90(1, (-2, -1))):
            assert_rounding(network(turned), network(images), n=200)

    assert_invariant()
    model = nn.ModuleList([each, over])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    before = [p.clone() for p in over.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        (network(images) - 1).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(over.parameters(), before, strict=True))
    assert_unitary(model)
    assert_invariant()


@pytest.mark.parametrize(
    "moves", [[], [[]], [[0, 0]], [[1, 2]], [[0.0, 1.0]], [0, 1], [[True, False]], torch.zeros(2, 0, dtype=torch.int64)]
)
def test_moves_that_are_not_permutations_are_refused(moves):
    with pytest.raises(ValueError, match=r"expected .*moves"):
        UnitaryGroupConv(2, 2, moves)


@pytest.mark.parametrize("shape", [(2, 4, 7), (2, 3, 8), (4, 8), (8,)])
def test_an_input_of_another_shape_is_refused(shape):
    layer = UnitaryGroupConv(4, 4, dihedral_moves(4))
    for call in (layer, layer.adjoint):
        with pytest.raises(ValueError, match=r"expected an input \(b, 4, 8"):
            call(torch.randn(shape))


def test_polygons_and_images_that_are_none_are_refused():
    with pytest.raises(ValueError, match="n=0"):
        dihedral_moves(0)
    for shape in ((3,), (2, 3, 4)):
        with pytest.raises(ValueError, match="square images"):
            dihedral_views(torch.zeros(shape))


def test_a_layer_made_without_data_has_its_moves_and_takes_data():
    with torch.device("meta"):
        layers = [UnitaryGroupConv(4, 4, moves) for moves in (dihedral_moves(4), [[1, 0]])]
    for layer, size in zip(layers, (8, 2), strict=True):
        assert layer.weight.is_meta
        assert layer.moves.device.type == "cpu"
        other = UnitaryGroupConv(4, 4, layer.moves)
        layer.load_state_dict(other.state_dict(), assign=True)
        x = torch.randn(2, 4, size)
        assert torch.equal(layer(x), other(x))


def test_it_prints_what_it_is():
    layer = UnitaryGroupConv(4, 6, dihedral_moves(4), bias=False, dtype=torch.complex64)
    assert repr(layer) == "UnitaryGroupConv(4, 6, 3 moves of 8 elements, bias=False, complex=True)"

"""The unitary convolution on graphs: the exponential of a dense matrix, and what follows from it."""

import pytest
import torch
from closeness import assert_rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from torch import Tensor

from unitary_layers import UnitaryGraphConv, UpdateRule
from unitary_layers.linalg import normalized_adjacency

NODES = 9
EDGES = [(0, 1), (1, 2), (2, 3), (3, 0), (3, 4), (4, 5), (5, 6), (6, 4), (0, 5), (1, 2), (7, 7)]  # 8 has none
DTYPES = (torch.float64, torch.complex128)


def both_ways(edges: list[tuple[int, int]] = EDGES) -> Tensor:
    """Each edge in both directions, `(2, edges)`."""
    one_way = torch.tensor(edges).T.reshape(2, -1)
    return torch.cat([one_way, one_way.flip(0)], 1)


def dense(edge_index: Tensor, weight: Tensor | None = None, nodes: int = NODES, loops: bool = False) -> Tensor:
    """`D^-1/2 A D^-1/2`, dense."""
    weight = torch.ones(edge_index.size(1), dtype=torch.float64) if weight is None else weight
    a = torch.zeros(nodes, nodes, dtype=torch.float64)
    a = a.index_put(tuple(edge_index), weight, accumulate=True) + (torch.eye(nodes) if loops else 0)
    d = torch.zeros(nodes, dtype=torch.float64).index_add(0, edge_index[0], weight.abs()) + loops
    scale = torch.where(d > 0, d, 1).rsqrt() * (d > 0)
    return scale[:, None] * a * scale


def slow(layer: UnitaryGraphConv, x: Tensor, a: Tensor) -> Tensor:
    """The layer by the exponentials of dense matrices, one for each channel or pair of channels."""
    y = x @ layer.matrix.mT
    channels = [y[..., j] for j in range(y.size(-1))]
    times = torch.tensor(layer.start) if layer.time is None else layer.time
    times = times.expand(len(channels) if y.is_complex() else len(channels) // 2)
    if y.is_complex():
        found = [torch.matrix_exp(1j * t * a) @ c.unsqueeze(-1) for t, c in zip(times, channels, strict=True)]
    else:
        found = []
        for t, u, v in zip(times, channels[::2], channels[1::2], strict=False):
            z = torch.matrix_exp(1j * t * a) @ torch.complex(u, v).unsqueeze(-1)
            found += [z.real, z.imag]
        found += [c.unsqueeze(-1) for c in channels[len(found) :]]
    y = torch.cat(found, -1)
    if layer.per_channel:
        y = y @ layer.matrix.conj()
    return y + (layer.value("bias") if layer.bias is not None else 0)


def make(n: int = 6, m: int = 6, dtype: torch.dtype = torch.float64, **options) -> UnitaryGraphConv:
    layer = UnitaryGraphConv(n, m, dtype=dtype, **options)
    torch.nn.init.normal_(layer.bias)
    return layer


SHAPES = [(6, 6), (5, 5), (6, 3), (3, 8), (1, 1)]
KINDS = {"": {}, "per-channel": {"per_channel": True}, "loops": {"add_self_loops": True}, "long": {"time": -7.0}}
CASES = [(kind, shape) for kind in KINDS for shape in SHAPES if kind != "per-channel" or shape[0] == shape[1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
def test_it_is_the_exponential_of_the_graph_with_gradients(kind, shape, dtype):
    options = KINDS[kind]
    layer = make(*shape, dtype, learn_time=True, **options)
    edges = both_ways()
    weight = torch.rand(len(EDGES), dtype=torch.float64).repeat(2).requires_grad_()
    x = torch.randn(2, NODES, shape[0], dtype=dtype, requires_grad=True)
    target = torch.randn(2, NODES, shape[1], dtype=dtype)
    leaves = (x, weight, *layer.parameters())
    results = []
    a = dense(edges, weight, loops=layer.add_self_loops)
    for y in (layer(x, edges, weight), slow(layer, x, a)):
        loss = (y * target.conj()).real.sum()
        results.append((y, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)))
    for found, expected in zip(*results, strict=True):
        assert_rounding(found, expected, n=40 * NODES)


def graph_of(nodes: int, seed: int = 0, edges: int = 12) -> tuple[Tensor, Tensor]:
    """Random edges in both directions, some of them several times, and weights of both signs."""
    generator = torch.Generator().manual_seed(seed)
    one_way = torch.randint(max(nodes, 1), (2, edges if nodes else 0), generator=generator)
    weight = torch.randn(one_way.size(1), dtype=torch.float64, generator=generator)
    return torch.cat([one_way, one_way.flip(0)], 1), weight.repeat(2)


@given(st.integers(0, 7), st.integers(0, 9), seeds, st.sampled_from([0.0, 1.0, -4.0]), st.booleans(), st.booleans())
@settings(max_examples=30)
def test_it_is_unitary_on_every_graph(nodes, edges, seed, time, normalize, complex_):
    """Without edges, nodes, and with weights that make degrees of zero: norm, Rayleigh quotient, adjoint."""
    dtype = torch.complex128 if complex_ else torch.float64
    layer = UnitaryGraphConv(4, 4, bias=False, dtype=dtype, time=time, normalize=normalize)
    edge_index, weight = graph_of(nodes, seed, edges)
    x = torch.randn(nodes, 4, dtype=dtype)
    with torch.no_grad():
        y = layer(x, edge_index, weight)
        a = dense(edge_index, weight, nodes) if normalize else None
        back = layer.adjoint(y, edge_index, weight)
    size = 40 * (nodes + 1) * (1 if normalize else 100)
    assert_rounding(y.norm(), x.norm(), n=size)
    assert_rounding(back, x, n=size)
    if a is not None:
        quotients = [(z.mH @ a.to(dtype) @ z).diagonal().real.sum() for z in (x, y)]
        assert_rounding(quotients[1], quotients[0], n=size)


def test_a_permutation_of_the_nodes_permutes_the_output_and_a_batch_is_block_diagonal():
    layer, (edges, weight), x = make(), graph_of(NODES), torch.randn(NODES, 6, dtype=torch.float64)
    y = layer(x, edges, weight)
    order = torch.randperm(NODES)
    assert_rounding(layer(x[order], order.argsort()[edges], weight), y[order], n=400)
    other, other_weight = graph_of(5, seed=1)
    z = torch.randn(5, 6, dtype=torch.float64)
    both = layer(torch.cat([x, z]), torch.cat([edges, other + NODES], 1), torch.cat([weight, other_weight]))
    assert_rounding(both, torch.cat([y, layer(z, other, other_weight)]), n=400)


def test_the_matrix_may_be_made_before_and_directed_edges_on_request():
    layer, (edges, weight), x = make(), graph_of(NODES), torch.randn(NODES, 6, dtype=torch.float64)
    expected = layer(x, edges, weight)
    graph = normalized_adjacency(edges, weight, NODES)
    rows = graph.matrix
    for matrix in (graph, rows, rows.to_sparse_coo(), rows.to_sparse_csc()):
        assert_rounding(layer(x, matrix), expected, n=400)
    one_way = edges[:, : edges.size(1) // 2]
    directed = UnitaryGraphConv(6, 6, dtype=torch.float64, symmetrize=True)
    directed.load_state_dict(layer.state_dict())
    assert_rounding(directed(x, one_way, 2 * weight[: one_way.size(1)]), expected, n=400)
    large = UnitaryGraphConv(6, 6, dtype=torch.float64, normalize=False)
    large.load_state_dict(layer.state_dict())
    a = torch.zeros(NODES, NODES, dtype=torch.float64).index_put(tuple(edges), weight, accumulate=True)
    assert torch.linalg.matrix_norm(a, 2) > 2  # far beyond where the series itself holds
    assert_rounding(large(x, edges, weight), slow(large, x, a), n=400)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_factored_gradients_are_the_dense_ones(per_channel, dtype):
    update = UpdateRule(rank=6, momentum=0.0)
    layers = [make(dtype=dtype, per_channel=per_channel, gradient=g, update=update) for g in ("dense", "factored")]
    layers[1].load_state_dict(layers[0].state_dict())
    x, edges = torch.randn(NODES, 6, dtype=dtype), both_ways()
    target = torch.randn(NODES, 6, dtype=dtype)
    for layer in layers:
        (layer(x, edges) * target.conj()).real.sum().backward()
    found = next(layers[1].own_unitary_weights()).collected.low_rank
    expected = next(layers[0].own_unitary_weights()).as_matrix(layers[0].weight.grad)
    assert_rounding(found.left @ found.right.mH, expected, n=400)


def test_times_that_a_transform_brings_have_their_own_order():
    layers = [make(learn_time=True, time=time) for time in (1.0, 5.0, 20.0)]
    x, edges = torch.randn(NODES, 6, dtype=torch.float64), both_ways()
    stacked = torch.func.stack_module_state(layers)
    found = torch.func.vmap(lambda *state: torch.func.functional_call(layers[0], state, (x, edges)))(*stacked)
    assert_rounding(found, torch.stack([layer(x, edges) for layer in layers]), n=400)


@pytest.mark.parametrize("per_channel", [False, True])
def test_second_derivatives_by_features_and_times(per_channel):
    layer = make(2, 2, per_channel=per_channel, learn_time=True)
    x, (edges, weight) = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), graph_of(3, edges=4)

    def run(x, time):
        return torch.func.functional_call(layer, {"time": time}, (x, edges, weight))

    assert torch.autograd.gradgradcheck(run, (x, layer.time))


def test_second_derivatives_by_edges_are_refused_in_words():
    layer, (edges, weight), x = make(), graph_of(NODES), torch.randn(NODES, 6, dtype=torch.float64)
    weight.requires_grad_()
    (grad,) = torch.autograd.grad(layer(x, edges, weight).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="expected first derivatives by the weights of the edges alone"):
        grad.sum().backward()


X = torch.randn(NODES, 6, dtype=torch.float64)
REFUSED = {
    "directed": (lambda: make()(X, both_ways()[:, :11]), ValueError, "symmetric graph, .*symmetrize=True"),
    "one edge among many": (lambda: make()(X, both_ways()[:, 1:]), ValueError, "symmetric graph"),
    "weights of a direction": (lambda: make()(X, both_ways(), torch.rand(22)), ValueError, "symmetric graph"),
    "no edges": (lambda: make()(X, None), TypeError, "expected edge_index to be a tensor, got NoneType"),
    "int32": (
        lambda: make()(X, both_ways().int()),
        ValueError,
        r"edge_index of torch.int64 \(2, edges\), got torch.int32",
    ),
    "pairs": (lambda: make()(X, both_ways().T), ValueError, r"\(2, edges\), got torch.int64 \(22, 2\)"),
    "a node too many": (lambda: make()(X[:8], both_ways([(7, 8)])), ValueError, "the 8 nodes from 0 to 7, got 8"),
    "a negative node": (lambda: make()(X, both_ways([(0, -1)])), ValueError, "the 9 nodes from 0 to 8, got -1"),
    "weights": (
        lambda: make()(X, both_ways(), torch.ones(3)),
        ValueError,
        r"edge_weight of a real dtype \(22,\), got .* \(3,\)",
    ),
    "complex weights": (lambda: make()(X, both_ways(), torch.ones(22) * 1j), ValueError, "got torch.complex64"),
    "a node's features": (
        lambda: make()(X[0], both_ways()),
        ValueError,
        r"input \(..., nodes, channels\), got shape \(6,\)",
    ),
    "another graph": (
        lambda: make()(X, normalized_adjacency(both_ways(), num_nodes=10)),
        ValueError,
        "nodes as the input has, 9, got 10",
    ),
    "weights twice": (
        lambda: make()(X, normalized_adjacency(both_ways(), num_nodes=9), torch.ones(22)),
        ValueError,
        "no edge_weight beside a matrix",
    ),
    "a rectangle": (
        lambda: make()(X, torch.zeros(9, 8).to_sparse()),
        ValueError,
        r"adjacency matrix \(nodes, nodes\), got shape \(9, 8\)",
    ),
    "channels": (
        lambda: UnitaryGraphConv(3, 4, per_channel=True),
        ValueError,
        "as many in_channels as out_channels .* got 3 and 4",
    ),
    "a time": (lambda: make(time=float("nan")), ValueError, "expected a time between -10000 and 10000, got nan"),
    "no number": (lambda: make(time="1"), TypeError, "expected time to be a number, got '1'"),
    "a tolerance": (lambda: make(tol=0.0), ValueError, r"expected tol > 0 and finite, got 0\.0"),
    "a flag": (lambda: make(normalize=1), TypeError, "normalize should be of type bool, got: int"),
    "an unknown spectrum": (
        lambda: torch.func.vmap(make(normalize=False), (0, None))(X[None], both_ways()),
        ValueError,
        "expected a graph whose spectrum is known",
    ),
}


@pytest.mark.parametrize(("call", "error", "match"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_take_it_refuses_in_words(call, error, match):
    with pytest.raises(error, match=match):
        call()

"""The unitary convolution on graphs: the exponential of a dense matrix, and what follows from it."""

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor

from unitary_layers import UnitaryGraphConv

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


KINDS = {"": {}, "per-channel": {"per_channel": True}, "loops": {"add_self_loops": True}, "long": {"time": -7.0}}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("shape", [(6, 6), (5, 5), (6, 3), (3, 8), (1, 1)], ids=str)
def test_it_is_the_exponential_of_the_graph_with_gradients(shape, options, dtype):
    if options.get("per_channel") and shape[0] != shape[1]:
        pytest.skip("refused")
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

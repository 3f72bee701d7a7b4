"""Graphs whose weights come in half precision: sums and comparisons of them are not taken in it."""

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor

from unitary_layers import UnitaryGraphConv
from unitary_layers.linalg import normalized_adjacency


def star(nodes: int) -> Tensor:
    """Node 0 with an edge to each of the others, in both directions."""
    ends = torch.arange(1, nodes)
    return torch.stack([torch.cat([ends * 0, ends]), torch.cat([ends, ends * 0])])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_edges_in_half_precision_keep_the_norm(dtype):
    nodes, x = 3000, torch.randn(3000, 4)
    layer, edges = UnitaryGraphConv(4, 4, bias=False, time=100.0), star(nodes)
    weight = torch.ones(edges.size(1), dtype=dtype, requires_grad=True)
    graph = normalized_adjacency(edges, weight, nodes)
    assert graph.values.dtype == torch.float32
    for y in (layer(x, edges, weight), layer(x, graph)):
        assert_rounding(y.norm(), x.norm(), n=400)
    y.sum().backward()
    assert weight.grad.dtype == dtype
    assert weight.grad.isfinite().all()
    few = torch.stack([torch.zeros(600), torch.zeros(600)]).long()  # a sum of 600 at one place
    matrix = torch.sparse_coo_tensor(few, torch.ones(600, dtype=dtype), (2, 2), check_invariants=True)
    assert_rounding(layer(x[:2], matrix), layer(x[:2], matrix.float()), n=400)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_missing_directions_are_found_in_every_precision(dtype):
    one_way = torch.randint(300, (2, 3000), generator=torch.Generator().manual_seed(0))
    edges = torch.cat([one_way, one_way.flip(0)], 1)
    weight = torch.rand(3000, generator=torch.Generator().manual_seed(1)).to(dtype).repeat(2)
    normalized_adjacency(edges, weight, 300)  # the same number in both directions, however coarse
    with pytest.raises(ValueError, match="symmetric graph"):
        normalized_adjacency(edges[:, 1:], weight[1:], 300)
    matrix = torch.sparse_coo_tensor(edges[:, 1:], weight[1:], (300, 300), check_invariants=True)
    with pytest.raises(ValueError, match="symmetric graph"):
        UnitaryGraphConv(4, 4)(torch.randn(300, 4), matrix)

"""torch_geometric: its containers, its data, and its adjacency matrices."""

import torch
from closeness import assert_rounding
from torch import nn
from toys import imported, quiet

from unitary_layers import GroupSort, UnitaryGraphConv, attach
from unitary_layers.testing import assert_unitary

pyg = imported("torch_geometric")
pytestmark = quiet
EDGES = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])


def graph(nodes: int, seed: int = 0) -> "pyg.data.Data":
    """A path of nodes with features and labels."""
    x = torch.randn(nodes, 5, generator=torch.Generator().manual_seed(seed))
    edges = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)])
    return pyg.data.Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], 1), y=(x.sum(1) > 0).long())


def network() -> nn.Module:
    edges = "x, edge_index -> x"
    layers = [(UnitaryGraphConv(5, 8), edges), GroupSort(dim=-1), (UnitaryGraphConv(8, 8), edges), nn.Linear(8, 2)]
    return pyg.nn.Sequential("x, edge_index", layers)


def test_a_sequential_learns_from_batches_of_graphs():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attach(model, optimizer)
    losses = []
    for _ in range(30):
        for batch in pyg.loader.DataLoader([graph(4), graph(6, 1), graph(3, 2)], batch_size=3):
            loss = nn.functional.cross_entropy(model(batch.x, batch.edge_index), batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
    assert losses[-1] < losses[0] / 2
    assert_unitary(model)


def test_a_batch_gives_what_its_graphs_give():
    model, graphs = network().eval(), [graph(4), graph(1, 1), graph(6, 2)]
    batch = pyg.data.Batch.from_data_list(graphs)
    expected = torch.cat([model(g.x, g.edge_index) for g in graphs])
    assert_rounding(model(batch.x, batch.edge_index), expected, n=100)


def test_the_matrix_is_that_of_its_own_convolution():
    data = graph(6)
    data.edge_weight = torch.rand(5).repeat(2)
    layer, theirs = UnitaryGraphConv(5, 5, bias=False, time=0.5, init="identity"), pyg.nn.conv.gcn_conv.gcn_norm
    index, weight = theirs(data.edge_index, data.edge_weight, add_self_loops=False)
    a = torch.zeros(6, 6).index_put(tuple(index), weight).to(torch.complex64)
    u, v = data.x[:, :4].unflatten(-1, (2, 2)).unbind(-1)
    expected = torch.view_as_real(torch.matrix_exp(0.5j * a) @ torch.complex(u, v)).flatten(-2)
    assert_rounding(layer(data.x, data.edge_index, data.edge_weight)[:, :4], expected, n=100)


def test_its_transforms_make_what_a_layer_takes():
    data = pyg.data.Data(x=torch.randn(4, 5), edge_index=EDGES[:, ::2])  # in one direction
    layer = UnitaryGraphConv(5, 5)
    both = pyg.transforms.ToUndirected()(data.clone())
    sparse = pyg.transforms.Compose([pyg.transforms.GCNNorm(add_self_loops=False), pyg.transforms.ToSparseTensor()])
    assert_rounding(layer(both.x, sparse(both.clone()).adj_t), layer(both.x, both.edge_index), n=100)

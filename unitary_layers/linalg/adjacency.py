"""Adjacency matrices of undirected graphs as sparse matrices of rows, and what must be known of them."""

import warnings
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .check import check_dense
from .transforms import is_readable

# Note [Symmetry by probes]
# A is symmetric if u^T A v = v^T A u for all u and v. Two pairs of vectors of numbers without a pattern tell as much,
# at the cost of a product with four vectors. They depend on the nodes alone, so a graph is refused always or never.
# The two directions may differ by the rounding of weights in their dtype, but in half precision by that of single: a
# coarser one would hide edges that are there in one direction alone.

# Note [A bound of the spectrum]
# No eigenvalue of A is larger than max_i (|A| d)_i / d_i, for any positive vector d (Collatz, Wielandt). A few products
# of |A| + I with the vector of ones make a d that gives a bound close to the largest one, and exactly 1 for a matrix
# D^-1/2 A D^-1/2 if d is the root of the degrees. Where the bound is above 1, t A = (t bound) (A / bound).

WITHOUT_PATTERN = torch.tensor([12.9898, 78.2331], dtype=torch.float64)  # factors under a sine, one a pair of probes
PRODUCTS = 8  # with |A| + I, of Note [A bound of the spectrum]


class Adjacency(NamedTuple):
    """A sparse matrix by its rows, as torch's compressed one, with the row of each entry besides.

    Entries that are there several times count as their sum. ``rows`` and ``columns`` ``(entries,)``, ``starts``
    ``(nodes + 1,)``, ``values`` ``(entries,)``, real; ``bound`` of the spectrum, 0 where it is not known.
    """

    rows: Tensor
    columns: Tensor
    starts: Tensor
    values: Tensor
    bound: float

    @property
    def nodes(self) -> int:
        """How many nodes the graph has."""
        return self.starts.numel() - 1

    @property
    def matrix(self) -> Tensor:
        """torch's sparse matrix ``(nodes, nodes)`` of the compressed sparse row layout."""
        return sparse_matrix(self.starts, self.columns, self.values)


def sparse_matrix(starts: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """torch's compressed sparse row tensor ``(nodes, nodes)``, which shares memory with its parts."""
    _hear_of_beta()
    n = starts.numel() - 1
    return torch.sparse_csr_tensor(starts, columns, values, (n, n), check_invariants=False)


@lru_cache
def _hear_of_beta() -> None:
    """Takes torch's warning, one a process, that this layout is in beta: a user of a layer has not chosen it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.zeros(1, dtype=torch.int64), [], [], (0, 0), check_invariants=False)


def normalized_adjacency(
    edge_index: Tensor,
    edge_weight: Tensor | None = None,
    num_nodes: int | None = None,
    *,
    add_self_loops: bool = False,
    symmetrize: bool = False,
) -> Adjacency:
    """``D^-1/2 A D^-1/2`` of an undirected graph, sparse: its eigenvalues lie between -1 and 1.

    A holds the weights of the edges, and D the sums of their moduli in each row. Edges that are there several times
    count as their sum. Nodes without an edge have rows of zeros.

    Args:
        edge_index: the ends of the edges, int64 ``(2, edges)``, each edge in both directions.
        edge_weight: real ``(edges,)``; ones if None. They are summed in double precision. In half precision too they
            must be the same in both directions.
        num_nodes: nodes of the graph; one more than the largest index if None.
        add_self_loops: adds an edge of weight 1 from each node to itself.
        symmetrize: takes ``(A + A^T) / 2`` in the place of A, so that edges may be directed.

    Returns:
        What :class:`unitary_layers.UnitaryGraphConv` takes in the place of ``edge_index``, so that many layers and
        forward passes share it. Its entries are in single precision, or that of the weights if that is higher.

    Raises:
        TypeError, ValueError: for what is not such an edge index, weights of another number or complex ones, an index
            out of range, or, without ``symmetrize``, edges in one direction alone.
    """
    check_edges(edge_index, edge_weight, num_nodes)
    if num_nodes is None:
        num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
    options = {"normalize": True, "add_self_loops": add_self_loops, "symmetrize": symmetrize}
    dtype = torch.get_default_dtype() if edge_weight is None else edge_weight.dtype
    return adjacency_of(edge_index, edge_weight, num_nodes, **options, dtype=torch.promote_types(dtype, torch.float32))


def adjacency_of(
    edge_index: Tensor,
    edge_weight: Tensor | None,
    num_nodes: int,
    *,
    normalize: bool,
    add_self_loops: bool,
    symmetrize: bool,
    dtype: torch.dtype,
) -> Adjacency:
    """The matrix of checked edges, differentiable in their weights; see :func:`normalized_adjacency`."""
    rows, columns = edge_index
    if edge_weight is None:
        edge_weight = torch.ones(rows.shape, dtype=torch.float64, device=rows.device)
    eps, edge_weight = _rounding_of(edge_weight), edge_weight.flatten().to(torch.float64)
    if symmetrize:
        rows, columns = torch.cat([rows, columns]), torch.cat([columns, rows])
        edge_weight = torch.cat([edge_weight, edge_weight]) / 2
    if add_self_loops:
        nodes = torch.arange(num_nodes, device=rows.device)
        rows, columns = torch.cat([rows, nodes]), torch.cat([columns, nodes])
        edge_weight = torch.cat([edge_weight, edge_weight.new_ones(num_nodes)])
    rows, order = rows.sort(stable=True)
    columns, values = columns[order], edge_weight[order]
    starts = torch.searchsorted(rows, torch.arange(num_nodes + 1, device=rows.device))
    if not symmetrize:
        check_symmetric(starts, columns, values, eps)
    if normalize:
        degrees = values.new_zeros(num_nodes).index_add(0, rows, values.abs())
        scales = torch.where(degrees > 0, degrees, 1).rsqrt()
        values = values * (scales[rows] * scales[columns])
    values = values.to(dtype)
    return Adjacency(rows, columns, starts, values, 1.0 if normalize else _bound(starts, columns, values))


@torch.compiler.disable  # a compiler knows neither sparse tensors nor views of them
def of_sparse(matrix: Tensor, dtype: torch.dtype) -> Adjacency:
    """The parts of a sparse matrix of torch, as it is.

    Raises:
        ValueError: if it is not square, real and symmetric.
    """
    if matrix.ndim != 2 or matrix.size(0) != matrix.size(1):
        raise ValueError(f"expected an adjacency matrix (nodes, nodes), got shape {tuple(matrix.shape)}")
    if not matrix.is_floating_point():
        raise ValueError(f"expected an adjacency matrix of a real dtype, got {matrix.dtype}")
    eps, matrix = _rounding_of(matrix), matrix.to(torch.float64).to_sparse_csr()
    starts, columns, values = (x.clone() for x in (matrix.crow_indices(), matrix.col_indices(), matrix.values()))
    starts, columns = starts.long(), columns.long()
    rows = torch.repeat_interleave(starts.diff(), output_size=columns.numel())
    check_symmetric(starts, columns, values, eps)
    return Adjacency(rows, columns, starts, values.to(dtype), _bound(starts, columns, values))


def check_edges(edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int | None) -> None:
    """Refuses what does not tell the edges of a graph; the numbers themselves only where they can be read.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for another shape or dtype, or an index out of range.
    """
    check_dense("edge_index", edge_index)
    if edge_index.dtype != torch.int64 or edge_index.ndim != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"expected edge_index of torch.int64 (2, edges), got {edge_index.dtype} {tuple(edge_index.shape)}"
        )
    if edge_weight is not None:
        check_dense("edge_weight", edge_weight)
        edges = edge_index.size(1)
        if not edge_weight.is_floating_point() or tuple(edge_weight.shape) not in ((edges,), (edges, 1)):
            raise ValueError(
                f"expected edge_weight of a real dtype ({edges},), got {edge_weight.dtype} {tuple(edge_weight.shape)}"
            )
    if not edge_index.numel() or not is_readable(edge_index):
        return
    least, most = map(int, edge_index.aminmax())
    if least < 0 or (num_nodes is not None and most >= num_nodes):
        count = most + 1 if num_nodes is None else num_nodes
        raise ValueError(f"expected the {count} nodes from 0 to {count - 1}, got {least if least < 0 else most}")


def _rounding_of(weights: Tensor) -> float:
    """By how much of itself a weight may differ in the two directions; see Note [Symmetry by probes]."""
    return torch.finfo(torch.promote_types(weights.dtype, torch.float32)).eps


def check_symmetric(starts: Tensor, columns: Tensor, values: Tensor, eps: float) -> None:
    """Refuses a matrix that is not symmetric, by a ``ValueError``; see Note [Symmetry by probes].

    Args:
        starts: of the rows.
        columns: of the entries.
        values: of the entries, in double precision.
        eps: by how much of itself a weight may differ in the two directions.
    """
    if not is_readable(values):
        return
    wide = values.detach()
    nodes = torch.arange(1, starts.numel(), dtype=torch.float64, device=starts.device).unsqueeze(-1)
    u, v = (((nodes + shift) * WITHOUT_PATTERN.to(nodes)).sin() for shift in (0.0, 0.5))
    through_u, through_v = (sparse_matrix(starts, columns, wide) @ torch.cat([u, v], -1)).chunk(2, -1)
    differences = (u * through_v - v * through_u).sum(0)
    # weights that were rounded one by one, and sums of so many terms
    rounding = eps * torch.linalg.vector_norm(wide)
    allowed = 4 * (rounding + torch.finfo(wide.dtype).eps * wide.abs().sum())
    if bool((differences.abs() > allowed).any()):
        raise ValueError(
            "expected a symmetric graph, each edge in both directions with the same weight, got one that is not; "
            "symmetrize=True takes (A + A^T) / 2, and torch_geometric.transforms.ToUndirected() adds the missing edges"
        )


def _bound(starts: Tensor, columns: Tensor, values: Tensor) -> float:
    return spectral_bound(starts, columns, values.detach()) if is_readable(values) else 0.0


def spectral_bound(starts: Tensor, columns: Tensor, values: Tensor) -> float:
    """An upper bound of the moduli of the eigenvalues; see Note [A bound of the spectrum]."""
    n = starts.numel() - 1
    if n == 0:
        return 0.0
    matrix = sparse_matrix(starts, columns, values.abs().to(torch.float64))
    d = torch.ones(n, 1, dtype=torch.float64, device=values.device)
    for _ in range(PRODUCTS):
        d = torch.addmm(d, matrix, d)
    return float((matrix @ d / d).amax())

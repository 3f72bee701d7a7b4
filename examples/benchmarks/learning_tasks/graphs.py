"""A task on a graph: which cells of a minefield hold a mine, from some of the numbers of mines beside them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Generator, Tensor, nn

from unitary_layers import GroupSort, UnitaryLinear

from .task import Call, Metric, Missing, Task

AREA = Metric("test ROC AUC, %", True)
SPLIT = 0  # of the ten splits of the graph


class Averages(torch.autograd.Function):
    """The product of a sparse symmetric matrix and features."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix @ x

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix @ grad


class GraphNetwork(nn.Module):
    """Residual layers, each the mean over neighbours of normalised features, a unitary map and a nonlinearity."""

    def __init__(self, matrix: Tensor, features: int, width: int = 64, depth: int = 8) -> None:
        super().__init__()
        self.matrix = matrix
        self.embed, self.head = nn.Linear(features, width), nn.Linear(width, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.layers = nn.ModuleList(nn.Sequential(UnitaryLinear(width, width), GroupSort()) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(Averages.apply(self.matrix, norm(x)))
        return self.head(x)


def normalised(edges: Tensor, nodes: int) -> Tensor:
    """`D^-1/2 A D^-1/2` of an undirected graph, sparse."""
    ends = torch.cat([edges, edges.flip(1)]).T
    degrees = torch.bincount(ends[0], minlength=nodes).clamp_min(1)
    values = (degrees[ends[0]] * degrees[ends[1]]).float().rsqrt()
    return torch.sparse_coo_tensor(ends, values, (nodes, nodes), check_invariants=True).coalesce()


def minesweeper(root: Path, steps: int = 60) -> Task:
    """Minesweeper, one of the heterophilous graphs of Platonov et al. (ICLR 2023, arXiv 2302.11640)."""
    path = root / "minesweeper.npz"
    if not path.exists():
        raise Missing(
            f"{path} is not there. It is in https://github.com/yandex-research/heterophilous-graphs, in data/."
        )
    with np.load(path) as found:
        x, y, edges = (torch.from_numpy(found[name]) for name in ("node_features", "node_labels", "edges"))
        train, held_out = (torch.from_numpy(found[f"{name}_masks"][SPLIT]) for name in ("train", "test"))

    def batch(_generator: Generator) -> tuple[Tensor, Tensor]:
        return x, y

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[train], targets[train])

    def test(call: Call) -> float:
        scores = call(x)[held_out].softmax(-1)[:, 1]
        return 100 * float(roc_auc_score(y[held_out].numpy(), scores.numpy()))

    model = partial(GraphNetwork, normalised(edges.long(), len(x)), x.size(1))
    return Task(model=model, batch=batch, loss=loss, test=test, metric=AREA, steps=steps)

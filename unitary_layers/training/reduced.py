"""The mean of a gradient over many machines, as an operator: only its thin products are sent."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..linalg import LowRank
from ..projunn.gradient import GradientOperator, WrappedGradient

# Note [Thin products over many machines]
# A sampler sees a gradient through G v and G^H u alone, which are linear in G. So the mean of these products over the
# ranks is exactly the product of the mean gradient, and 2 k n numbers cross the wire instead of n^2. All ranks draw the
# same random numbers by their keys and get the same sums, bit for bit, so that their weights stay equal without ever
# being sent. DistributedDataParallel is told to leave these weights alone: a communication hook of it, which
# thin_products_hook is for dense gradients, sees of a factored gradient the matrix, not the factors, nor the state of a
# rule, and what it leaves in .grad must be a matrix again.


@dataclass(frozen=True)
class ReducedGradient(WrappedGradient):
    """The mean of a gradient over the ranks of a group; see Note [Thin products over many machines].

    Attributes:
        inner: the part of this rank, ``(..., m, n)``.
        group: the ranks; all of them ask for the same products in the same order.
    """

    inner: GradientOperator
    group: dist.ProcessGroup

    def matmul(self, v: Tensor) -> Tensor:
        return self._mean(self.inner.matmul(v).mT).mT

    def rmatmul(self, u: Tensor) -> Tensor:
        return self._mean(self.inner.rmatmul(u).mT).mT

    def along(self, direction: LowRank) -> Tensor:
        return self._mean(self.inner.along(direction))

    def dense(self) -> Tensor:
        return self._mean(self.inner.dense())

    def is_finite(self) -> bool:
        everywhere = torch.tensor(int(self.inner.is_finite()), device=self.device)
        dist.all_reduce(everywhere, dist.ReduceOp.MIN, self.group)
        return bool(everywhere)

    def scale(self, factor: float) -> "ReducedGradient":
        return ReducedGradient(self.inner.scale(factor), self.group)

    def _mean(self, x: Tensor) -> Tensor:
        x = x.contiguous() / self.group.size()  # first, so that what is finite on all ranks stays so
        dist.all_reduce(x, group=self.group)
        return x

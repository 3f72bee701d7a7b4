"""Products of a large matrix with thin ones, and sums of them, at the speed of memory."""

import torch
from torch import Tensor

from .lowrank import LowRank

# Note [Panels]
# A product of a large matrix with a thin one does hardly any arithmetic: it costs the reading of the matrix. BLAS does
# not see it so: one or two columns it gives to one thread, and it packs the operands of a b^T at the price of three
# copies. So the rows go in panels, as a batch, which is shared among threads; and up to TERMS columns are added one by
# one, elementwise. Milliseconds at n = 2048 in float32 on two cores, where a copy takes 0.8: u^T W 0.7 to 0.3 (one
# column), 1.35 to 0.57 (two), 3.3 to 2.2 (32); W v 0.57 to 0.26 (one), and no less from two on; W + a b^T 1.5 to 0.33
# (two columns), 4.4 to 4.1 (eight; n = 4096). To add more than NARROW columns, panels of half as many rows are faster:
# 64 columns, one core, 6.5 to 4.1 (n = 2048), 26 to 17 (n = 4096); but 16 columns 1.8 to 2.4. A sum over 100,352 rows
# becomes two to three times as fast. Below two panels, and for a batch, which is shared among threads as it is, there
# is nothing to gain.

# The adjoint of a row-major matrix, in whose frame a tall weight turns, is streamed as what it is the adjoint of.

PANEL = 256
TERMS = 2
NARROW = 32


def times_thin(matrix: Tensor, thin: Tensor) -> Tensor:
    """``M v`` ``(..., m, k)`` of a row-major ``M`` ``(..., m, n)``, or the adjoint of one, and a k-major ``v``."""
    if _is_adjoint(matrix):
        return thin_times(thin, matrix.mH).mH
    whole = _rows_in_panels(matrix)
    if not whole:
        return matrix @ thin
    panels = matrix[:whole].unflatten(0, (-1, PANEL))
    product = torch.bmm(panels, thin.expand(len(panels), -1, -1)).flatten(end_dim=1)
    return product if whole == len(matrix) else torch.cat([product, matrix[whole:] @ thin])


def thin_times(thin: Tensor, matrix: Tensor) -> Tensor:
    """``u^H M`` ``(..., k, n)`` of a row-major ``M`` ``(..., m, n)``, or the adjoint of one, and a k-major ``u``."""
    if _is_adjoint(matrix):
        return times_thin(matrix.mH, thin).mH
    whole = _rows_in_panels(matrix)
    if not whole:
        return thin.mH @ matrix
    # A row-major M is streamed once, which M^H u would not do; see Note [Thin factors are k-major].
    parts = (x[:whole].unflatten(0, (-1, PANEL)) for x in (thin, matrix))
    product = torch.bmm(next(parts).mH, next(parts)).sum(0)
    return product if whole == len(matrix) else product + thin[whole:].mH @ matrix[whole:]


def add_low_rank_(matrix: Tensor, change: LowRank) -> None:
    """Adds ``left @ right^H`` to a contiguous ``(..., m, n)`` in place, without a temporary of its size."""
    left, right = change.left, change.right.mH
    whole = _rows_in_panels(matrix)
    if matrix.ndim > 2:
        matrix.view(-1, *matrix.shape[-2:]).baddbmm_(left.flatten(end_dim=-3), right.flatten(end_dim=-3))
    elif whole and change.rank <= TERMS:
        for i in range(change.rank):
            matrix.addcmul_(left[:, i : i + 1], right[i : i + 1])
    elif whole == len(matrix):
        panels, factors = (x.unflatten(0, (-1, PANEL if change.rank <= NARROW else PANEL // 2)) for x in (matrix, left))
        panels.baddbmm_(factors, right.expand(len(panels), -1, -1))
    else:
        matrix.addmm_(left, right)


def _is_adjoint(matrix: Tensor) -> bool:
    """Whether the matrix is column-major, and so row-major if transposed."""
    return not matrix.is_contiguous() and matrix.mT.is_contiguous()


def _rows_in_panels(matrix: Tensor) -> int:
    """How many of the rows are to go in panels; 0 for a batch or few rows."""
    m = matrix.size(-2)
    return m - m % PANEL if matrix.ndim == 2 and m >= 2 * PANEL else 0

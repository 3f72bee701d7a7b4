"""How far an input may move before a prediction can change: from the logits of a linear head, and nothing else.

Source: Y. Tsuzuku, I. Sato, M. Sugiyama, "Lipschitz-margin training", NeurIPS 2018, arXiv 1802.04034, proposition 1; by
pairs of classes.
"""

import math
from numbers import Real

import torch
from torch import Tensor, nn

from ..layers import UnitaryLinear
from ..layers.base.forward import value_in_use
from ..linalg.check import check_dense
from ..linalg.transforms import is_readable

POOLINGS = ("max", "avg", "norm")

# Note [Distance to a boundary]
# Let z = W f + b be the logits of features f. Of a boundary between the classes y and j, z_y = z_j, f has the distance
# (z_y - z_j) / |w_y - w_j| exactly, whatever b is. If the features move at most L times as far as the input, the input
# has L times less at least. The least of these over j is the radius. Each pair has its own distance of rows: one bound
# for all pairs, such as sqrt(2) for rows of norm 1, can be smaller or larger than that.


def rows_of(head: nn.Module) -> Tensor:
    """The rows ``(classes, features)`` by which a linear head multiplies: the matrix of one of ours, or the weight."""
    if isinstance(head, UnitaryLinear):  # which may round its weight, and an average is not used as it is
        return value_in_use(head, "weight")
    rows = getattr(head, "matrix", getattr(head, "weight", None))
    if not isinstance(rows, Tensor):
        raise ValueError(f"expected a linear head, got a {type(head).__name__}")
    return rows


def row_distances(weight: Tensor) -> Tensor:
    """The distances ``(classes, classes)`` of the rows of a head ``(classes, features)``, differentiable.

    Differences are taken before they are squared: rows that are nearly equal keep all their digits.
    """
    return torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")


def certified_radius(
    logits: Tensor, head: nn.Module | Tensor, lipschitz: float = 1.0, targets: Tensor | None = None
) -> Tensor:
    """The distance within which no input has another prediction; see Note [Distance to a boundary].

    It is a proof, up to the rounding of the logits, where ``lipschitz`` is a bound of all that comes before the head,
    which nobody looks at here: :func:`lipschitz_bound` finds one or refuses. A tie has radius 0. The result is
    differentiable.

    Args:
        logits: ``(..., classes)``, of a linear head with any bias.
        head: the linear head, or the matrix ``(classes, features)`` that it multiplies by.
        lipschitz: of the map from the input to the features, by whose norm distances are measured (Euclidean).
        targets: int64 ``(...)``, the right classes, where the radius of an input with a wrong prediction shall be 0;
            the predicted classes if None.

    Returns:
        Radii ``(...)``, in single precision or that of the logits if that is higher.

    Raises:
        TypeError: for logits or targets that are no tensors, and a constant that is no number.
        ValueError: for a head that is not linear, logits and a head whose numbers of classes differ or that are
            complex, fewer than two classes, a constant that is not positive, targets of another shape or dtype, or, on
            the CPU, a target that is no class.

    Example:
        >>> head = torch.nn.Linear(8, 3)
        >>> features = torch.randn(5, 8)  # of a 1-Lipschitz network
        >>> certified_radius(head(features), head).shape
        torch.Size([5])
    """
    check_dense("logits", logits)
    weight = head if isinstance(head, Tensor) else rows_of(head)
    if weight.ndim != 2 or logits.ndim < 1 or logits.shape[-1] != len(weight) or len(weight) < 2:
        raise ValueError(
            f"expected logits (..., classes) and a head (classes, features) of two classes or more, got shapes "
            f"{tuple(logits.shape)} and {tuple(weight.shape)}"
        )
    if logits.is_complex() or weight.is_complex():
        raise ValueError(f"expected real logits and a real head, got {logits.dtype} and {weight.dtype}")
    _check_constant(lipschitz)
    if targets is not None:
        _check_targets(targets, logits)
    dtype = torch.promote_types(torch.promote_types(logits.dtype, weight.dtype), torch.float32)
    logits, weight = logits.to(dtype), weight.to(dtype)
    own = (logits.argmax(dim=-1) if targets is None else targets).unsqueeze(-1)
    margins = (logits.gather(-1, own) - logits).clamp(min=0)
    distances = lipschitz * row_distances(weight)[own.squeeze(-1)]
    # Between equal rows there is no boundary: what is ahead stays ahead. Divided by 1 instead, gradients stay finite.
    apart = distances > 0
    radii = margins / distances.where(apart, 1.0)
    radii = radii.masked_fill(~apart & (margins > 0), math.inf)
    return radii.scatter(-1, own, math.inf).amin(dim=-1)


def _check_constant(lipschitz: object) -> None:
    """Refuses what is no positive number; a tensor of one, with or without a gradient, is."""
    if isinstance(lipschitz, Tensor):
        if lipschitz.ndim or not lipschitz.is_floating_point():
            raise TypeError(
                f"expected lipschitz to be a number, got {lipschitz.dtype} {tuple(lipschitz.shape)}; targets are given "
                "by name"
            )
        is_positive = not is_readable(lipschitz) or bool(lipschitz > 0)
    elif isinstance(lipschitz, Real) and not isinstance(lipschitz, bool):
        is_positive = float(lipschitz) > 0
    else:
        raise TypeError(f"expected lipschitz to be a number, got {lipschitz!r}")
    if not is_positive:
        raise ValueError(f"expected a positive Lipschitz constant, got {lipschitz!r}")


def _check_targets(targets: Tensor, logits: Tensor) -> None:
    """Refuses what is not a class for each input; off the CPU, where it would have to wait, it reads no numbers."""
    check_dense("targets", targets)
    if targets.dtype != torch.int64 or targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"expected targets of torch.int64 {tuple(logits.shape[:-1])}, got {targets.dtype} {tuple(targets.shape)}"
        )
    if targets.numel() and targets.device.type == "cpu" and is_readable(targets):
        least, most = map(int, targets.aminmax())
        if least < 0 or most >= logits.shape[-1]:
            raise ValueError(f"expected targets from 0 to {logits.shape[-1] - 1}, got {least if least < 0 else most}")


def pool_lipschitz(pool: str, height: int, width: int) -> float:
    """Lipschitz constant of a pooling over all positions, in the Euclidean norm.

    Args:
        pool: "max" or "norm", the root of the sum of squares (both 1), or "avg" (the norm of the mean of
            height x width numbers, 1 / sqrt(height x width)).
        height: of the features, in positions.
        width: of the features, in positions.

    Raises:
        ValueError: for another pooling.
    """
    if pool not in POOLINGS:
        raise ValueError(f"expected pool to be one of {POOLINGS}, got {pool!r}")
    return 1 / math.sqrt(height * width) if pool == "avg" else 1.0

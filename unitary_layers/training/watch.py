"""Notices when something else has written a unitary weight, and brings it back to the manifold."""

import warnings
from collections.abc import Iterable

import torch

from ..linalg import nearest_unitary, unitarity_error
from .weight import UnitaryWeight

# Note [Off the manifold]
# An optimiser of torch that was given a unitary weight and its .grad, an average of weights, nn.init, an edit under
# no_grad, vector_to_parameters: each leaves a weight that is not unitary, without an error. All of them change the
# version that torch counts for a tensor, or its address, while a layer knows both from its own last write. So each
# step, and each forward in training, compares a few integers; only where they differ is |W^H W - I|_F computed. A
# weight off by more than rounding is reported by name and retracted, or refused with UpdateRule(off_manifold="raise").
# An optimiser that was detached, or is LBFGS, writes it again and again: that is reported once, until the weight has
# taken a step of its own. Others are attached before they write; see Note [Strangers].

# Note [Writes that torch does not count]
# ``nn.init.normal_(m.weight.data)``, ``p.data.clamp_``, optimisers of the old style and teachers that follow a student
# write through ``parameter.data``, of which torch keeps no count. So a layer also knows the sum of some n of the n^2
# entries of a weight, at least one in each row and column, and looks whether it is still that, bit for bit. What a
# step spends on it was measured as 0.35 % of its time at n = 64 and 0.05 % at n = 2048 (128 rows, one thread). What
# writes rows, columns or all of a matrix changes the sum. An edit of a few other entries does not, and is repaired by
# the retraction that is due every max(1000, n) steps. A state dict is looked at as well, in training: a network that is
# never stepped may have been spoilt after its last forward pass. Off the CPU the host has to wait for the answer, and
# so asks only where it waits anyway, in the step and for a state dict.


@torch.no_grad()
def watch(weights: Iterable[UnitaryWeight]) -> None:
    """Looks at those of the weights that something else has written since they were last known to be unitary.

    Warns:
        UserWarning: for a weight that is not unitary and is replaced by the nearest unitary one.

    Raises:
        RuntimeError: for such a weight of a rule with ``off_manifold="raise"``, one with a NaN or an infinity, or one
            in half precision; then no weight has been changed.
    """
    off = []
    for weight in weights:
        if weight.seen.is_of(weight.parameter) or weight.parameter.is_meta:
            continue
        if torch.finfo(weight.parameter.dtype).bits < 32:
            raise RuntimeError(
                f"expected the unitary weight {weight.name!r} in float32 or better, got {weight.parameter.dtype}: "
                "something has cast it, perhaps another layer that it is tied to"
            )
        error, tolerance = float(unitarity_error(weight.matrix).amax()), rounding_tolerance(weight)
        if error <= tolerance:
            weight.note()
            continue
        message, remedy = _said_of(weight)
        message += f": expected |W^H W - I|_F <= {tolerance:.1e}, got {error:.1e}"
        if weight.rule.off_manifold == "raise" or not torch.isfinite(weight.matrix).all():
            raise RuntimeError(f"{message}; no unitary weight was changed ({remedy}; retract_() repairs a finite one)")
        off.append((weight, message, remedy))
    for weight, message, remedy in off:
        if weight.seen.reported_after != (count := int(weight.count)):
            weight.seen.reported_after = count
            warnings.warn(f"{message}; the nearest unitary matrix is used instead ({remedy})", stacklevel=3)
        weight.matrix.copy_(nearest_unitary(weight.matrix))
        weight.note()


def vouch(weight: UnitaryWeight, filler: str) -> None:
    """Notes that a weight which a function has filled is unitary, or keeps the function's name for the report."""
    if weight.parameter.is_meta:
        return
    if float(unitarity_error(weight.matrix).amax()) <= rounding_tolerance(weight):
        weight.note()
    else:
        weight.seen.cause = filler


def _said_of(weight: UnitaryWeight) -> tuple[str, str]:
    """What has happened to a weight, and what to do about it."""
    which = f"{weight.name!r} {tuple(weight.matrix.shape)}"
    if weight.seen.cause == "to_empty":
        remedy = "call reset_parameters() of its layer, or load a state dict"
        return f"the unitary weight {which} has had no values since to_empty()", remedy
    if weight.seen.cause:
        what = f"the unitary weight {which} was filled by init={weight.seen.cause} that gives no unitary matrix"
        return what, "take one that does, such as those of unitary_layers.init"
    remedy = "an optimiser, perhaps: let it step after projunn_step(), or use attach(model, optimizer)"
    return f"the unitary weight {which} was written by something else", remedy


def rounding_tolerance(weight: UnitaryWeight, dtype: torch.dtype | None = None) -> float:
    """The ``|W^H W - I|_F`` up to which a matrix of larger side n counts as unitary: 10 (n + 1) eps of its storage."""
    return 10 * (max(weight.shape) + 1) * torch.finfo(weight.parameter.dtype if dtype is None else dtype).eps

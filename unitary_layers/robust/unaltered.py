"""Whether a layer still works with the unitary weights on which its Lipschitz bound rests."""

from itertools import chain

import torch
from torch import nn

from ..layers import UnitaryModule
from ..layers.base.forward import in_use, own_parameter
from ..layers.base.inputs import HALF
from ..linalg import unitarity_error
from ..training.watch import rounding_tolerance

# Note [Weights behind a bound]
# A layer of this package is 1-Lipschitz because its weights are unitary, and not because of its class. A
# parametrisation, a plain tensor in the place of a parameter, or a write that nothing noticed make a layer of the same
# class that enlarges distances. So a bound looks at the numbers that a forward pass would take: in evaluation those of
# Note [Averages of weights], in training the stored ones.


@torch.no_grad()
def check_unitary(module: UnitaryModule) -> None:
    """Refuses a layer whose unitary weights are not its own, or not unitary to rounding, by a ``ValueError``."""
    kind = type(module).__name__
    for name in module._unitary:
        if getattr(module, name, None) is None:
            continue
        if own_parameter(module, name) is None:
            raise ValueError(
                f"expected the unitary weight {name!r} that {kind} registered, got another tensor in its place; "
                "remove what parametrises, shards or replaces it, and call retract_()"
            )
        weight, value = module.unitary_weight(name), in_use(module, name)
        if value.is_meta:
            raise ValueError(f"expected {name!r} to have values, got a {kind} on the meta device; move it first")
        error, tolerance = float(unitarity_error(weight.as_matrix(value)).amax()), rounding_tolerance(weight)
        if not error <= tolerance:  # nor of one that is not a number
            raise ValueError(
                f"expected {name!r} of {kind} to be unitary, |W^H W - I|_F <= {tolerance:.1e}, got {error:.1e}; call "
                "retract_() if it is finite"
            )


def check_precision(module: nn.Module) -> None:
    """Refuses unitary weights beside tensors of half precision, to which a forward pass would round them."""
    if not any(isinstance(part, UnitaryModule) and part._unitary for part in module.modules()):
        return
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.dtype in HALF:
            raise ValueError(
                f"expected unitary layers in float32 or better, got one of {tensor.dtype} beside them: the forward "
                "pass rounds unitary weights to half precision; call float() before"
            )

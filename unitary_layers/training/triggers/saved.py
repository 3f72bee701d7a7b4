"""The momenta of unitary weights in the state dict of an optimiser that does not know of them."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..memory import KEYS

# Note [A guest in the state dict]
# The momenta of an attached model are saved with its optimiser, as the state of their parameters, and yet are not in
# ``optimizer.state``: there AdamW and others take whatever is kept of a parameter for their own, and fail on what they
# do not find, when they are copied, loaded, or step a weight that was detached. So they are put into a state dict as it
# is made, and taken out of it before the optimiser loads it. One that is loaded before it is attached keeps them until
# it is; for its sake the numbers are saved along that optimisers look for in any state as they load it: all for a
# "step", NAdam and ASGD for more.

SOUGHT = ("step", "mu_product", "eta", "mu")


def with_momenta(state_dict: dict[str, Any], optimizer: Optimizer, momenta: Mapping[Tensor, Any]) -> Any:
    """The state dict of an optimiser with the momenta of its unitary weights; see Note [A guest in the state dict]."""
    guests = {
        key: momenta[parameter] | {name: torch.zeros(()) for name in SOUGHT}
        for key, parameter in _parameters(state_dict, optimizer)
        if parameter in momenta
    }
    return state_dict | {"state": state_dict["state"] | guests} if guests else state_dict


def without_momenta(state_dict: dict[str, Any], optimizer: Optimizer) -> tuple[dict[str, Any], dict[Tensor, Any]]:
    """The state dict as the optimiser knows it, and what it has of the momenta of the weights."""
    parameters, state = dict(_parameters(state_dict, optimizer)), dict(state_dict["state"])
    momenta = {}
    for key in [key for key, own in state.items() if isinstance(own, dict) and KEYS[0] in own]:
        parameter, own = parameters.get(key), state.pop(key)
        if parameter is not None:  # what does not fit its shape is begun anew
            momenta[parameter] = {name: own[name].detach().to(parameter, copy=True) for name in KEYS if name in own}
    return state_dict | {"state": state}, momenta


def wrapped(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimisers that one holds, such as that which timm's Lookahead or torch's ZeroRedundancyOptimizer steps."""
    found = [optimizer]
    for holder in found:  # which grows
        for inner in vars(holder).values():
            if isinstance(inner, Optimizer) and not any(inner is other for other in found):  # one may know its wrapper
                found.append(inner)
                yield inner


def adopt(optimizer: Optimizer, momenta: MutableMapping[Tensor, Any]) -> None:
    """Takes over the momenta that an optimiser, or one that it wraps, has loaded before it was attached."""
    for state in [holder.state for holder in (optimizer, *wrapped(optimizer))]:
        for parameter in [p for p, own in state.items() if KEYS[0] in own]:
            own = state.pop(parameter)
            momenta[parameter] = {name: own[name] for name in KEYS if name in own}


def _parameters(state_dict: dict[str, Any], optimizer: Optimizer) -> Iterator[tuple[Any, Tensor]]:
    """The keys of the state dict and the parameters that they stand for."""
    for saved, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=False):
        yield from zip(saved["params"], group["params"], strict=False)

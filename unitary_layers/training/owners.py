"""How a unitary weight is found from the bare parameter, as an optimiser is given it."""

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn

from .weight import UnitaryOwner, UnitaryWeight

# Note [How an optimiser knows a unitary weight]
# An optimiser is given tensors, and a tensor cannot be trusted to know that it is unitary: an attribute or a subclass
# is lost by deepcopy, load_state_dict(assign=True), the meta device and to_empty(), which all make a new Parameter.
# The module knows, by the parameter's name. So every module that owns unitary weights is listed here, weakly, from
# its construction, its unpickling and its deepcopy on, and a parameter is looked up by asking the living modules
# which of them holds this very tensor now. A module is first asked for its parameters alone, so that one whose weights
# have been taken away, or are computed from others, matters only to those who train it. Grouping parameters, as timm
# does for weight decay, leaves the tensors what they are. A tensor that was replaced in its module after an optimiser
# was built is trained by no optimiser of torch, ours included.

_owners: weakref.WeakKeyDictionary[UnitaryOwner, None] = weakref.WeakKeyDictionary()  # a set in order of age
_lock = threading.Lock()
_registrations = [0]  # how many there have been


def register_owner(module: UnitaryOwner) -> None:
    """Lists a module for :func:`weights_of`; it stays listed for as long as it lives."""
    with _lock:
        _owners[module] = None
        _registrations[0] += 1


def owners() -> list[UnitaryOwner]:
    """The living modules that own unitary weights, the first made first."""
    with _lock:
        return list(_owners)


def forget_owner(module: object) -> None:
    """Takes a module that has become another kind of module from the list of :func:`register_owner`."""
    with _lock:
        if _owners.pop(module, True) is None:  # type: ignore[call-overload]  # any module may be asked for
            _registrations[0] += 1


def owners_of(parameters: Iterable[Tensor]) -> list[UnitaryOwner]:
    """The living modules that have one of the parameters as a unitary weight, the first made first."""
    wanted = set(map(id, parameters))
    with _lock:
        owners = list(_owners)
    return [owner for owner in owners if not wanted.isdisjoint(map(id, _parameters_of(owner)))]


def _parameters_of(owner: UnitaryOwner) -> Iterable[Tensor | None]:
    return list(cast(nn.Module, owner)._parameters.values())  # at once: another thread may be building the layer


def weights_of(
    parameters: Iterable[Tensor], owners: Sequence[UnitaryOwner] | None = None
) -> dict[Tensor, UnitaryWeight]:
    """Those of the parameters that are unitary weights of one of the owners, of any if None; in order and numbered.

    Without a module tree their names are those of the class and the parameter, as in ``UnitaryLinear.weight``. A tied
    weight is that of the module that was made first, as it is in a tree that lists that module first.
    """
    parameters = list(parameters)
    owners = owners_of(parameters) if owners is None else owners
    known = {
        id(weight.parameter): weight.placed(f"{type(owner).__name__}.{weight.name}", weight.index)
        for owner in reversed(owners)
        for weight in owner.own_unitary_weights()
    }
    found: dict[Tensor, UnitaryWeight] = {}
    for parameter in parameters:
        if id(parameter) in known and parameter not in found:
            found[parameter] = known[id(parameter)].placed(known[id(parameter)].name, len(found))
    return found


class Lookup:
    """:func:`weights_of` again and again: all living modules are asked only where something has changed."""

    def __init__(self) -> None:
        self._asked_for: object = None
        self._count = 0
        self._owners: list[weakref.ref[UnitaryOwner]] = []

    def weights(self, parameters: Sequence[Tensor]) -> dict[Tensor, UnitaryWeight]:
        """The unitary weights among the parameters, as their modules see them now."""
        asked_for = (_registrations[0], tuple(map(id, parameters)))
        found = weights_of(parameters, [owner for ref in self._owners if (owner := ref()) is not None])
        if asked_for != self._asked_for or len(found) != self._count:
            owners = owners_of(parameters)
            found = weights_of(parameters, owners)
            self._asked_for, self._count = asked_for, len(found)
            self._owners = list(map(weakref.ref, owners))
        return found

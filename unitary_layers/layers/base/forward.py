"""What a forward pass asks of the unitary weights of its layer."""

import warnings
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...linalg import nearest_unitary, unitarity_error
from ...linalg.transforms import is_transformed
from ...training.factored.graphs import Sampled
from ...training.watch import rounding_tolerance, watch
from ...training.weight import UnitaryWeight, as_complex, record_of
from .inputs import as_half
from .module import UnitaryModule

# Note [Averages of weights]
# An average of unitary matrices, as stochastic weight averaging and exponential moving averages keep it, is not
# unitary. It must stay as it is, for the next matrix to be averaged into it, and it is not used as it is: in evaluation
# a layer works with the nearest unitary matrix, and writes nothing. That is the matrix which loading makes of a saved
# average, so both give the same outputs. It is computed anew in each pass, for some write averages through ``.data``,
# of which torch keeps no count. A weight that has been seen to be unitary costs what it costs in training: a comparison
# of integers and, on the CPU, of a sum; see Note [Writes that torch does not count]. Graphs that are compiled, exported
# or traced take a weight as it is, and so does torch's encoder layer in evaluation, which reads it by its name.

# Note [Weights that are computed]
# torch's parametrisations, prunings and weight norms put a tensor in the place of a parameter and train what it is
# computed from. No step of this package can move that, and each refuses it. But an optimiser of torch, or ProjUNN, is
# given ordinary parameters, and sees nothing. So the forward pass in training says so, once for each of them.

_told: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def own_parameter(module: UnitaryModule, name: str) -> nn.Parameter | None:
    """The parameter that a layer has registered by a name; None where another tensor stands for it.

    That is so under functional_call, in a replica of DataParallel, under FSDP, and for what torch parametrises.
    """
    parameter = module._parameters.get(name)
    own = type(parameter) is nn.Parameter and module._registered.get(name) == id(parameter)
    return parameter if own else None


def watch_own(module: nn.Module) -> None:
    """Notices, in training, what something else has done to a layer's weights; see Note [Off the manifold]."""
    if not isinstance(module, UnitaryModule) or not module.training:
        return
    if torch.compiler.is_compiling() or is_transformed():
        return
    for name in module._unitary:
        parameter = own_parameter(module, name)
        if parameter is None:
            _tell_of_computed(module, name)
        elif not record_of(parameter)[1].is_of_in_passing(parameter):
            watch([module.unitary_weight(name)])


def _tell_of_computed(module: UnitaryModule, name: str) -> None:
    """Warns of a weight that others are trained for; see Note [Weights that are computed]."""
    if not torch.is_grad_enabled() or name in _told.get(module, ()):
        return
    if not any(parameter.requires_grad for parameter in _computed_from(module, name)):
        return
    _told.setdefault(module, set()).add(name)
    warnings.warn(
        f"the unitary weight {name!r} of {type(module).__name__} is computed from other parameters, which an optimiser "
        "trains as ordinary ones, and nothing keeps it unitary; undo that (parametrize.remove_parametrizations, "
        "prune.remove) and call retract_(), or freeze them",
        stacklevel=3,
    )


def _computed_from(module: nn.Module, name: str) -> Iterator[nn.Parameter]:
    lists = module._modules.get("parametrizations")
    if isinstance(lists, nn.ModuleDict) and name in lists:
        yield from lists[name].parameters()
    for end in ("orig", "g", "v"):  # of torch.nn.utils.prune, spectral_norm and weight_norm of the old style
        parameter = module._parameters.get(f"{name}_{end}")
        if parameter is not None:
            yield parameter


def value_in_use(module: UnitaryModule, name: str, like: Tensor | None = None) -> Tensor:
    """A unitary weight as a forward pass uses it, quantised if so, otherwise as :meth:`UnitaryModule.value`."""
    stored = in_use(module, name)
    value = stored if module.quantiser is None else module.quantiser(stored)
    return as_half(as_complex(value, module.is_complex), like)


def integer_of(module: UnitaryModule, name: str) -> tuple[Tensor, Tensor]:
    """The codes of a quantised weight as ``int8``, stored as the weight is, and their scale; see :class:`Quantiser`.

    Raises:
        ValueError: if the layer has no ``weight_bits``.
    """
    if module.quantiser is None:
        raise ValueError(f"expected a layer with weight_bits, got a {type(module).__name__} without")
    stored = in_use(module, name) if name in module._unitary else getattr(module, name)
    codes, scale = module.quantiser.codes(stored.detach())
    return codes.to(torch.int8), scale


def in_use(module: nn.Module, name: str) -> Tensor:
    """A unitary weight, as it is stored: the parameter, or in evaluation the nearest unitary one.

    Its gradient is taken for that of the parameter. See Note [Averages of weights].
    """
    if not isinstance(module, UnitaryModule):  # a scripted layer
        return getattr(module, name)  # type: ignore[no-any-return]  # of a module, which has more than tensors
    parameter = own_parameter(module, name)
    # No compiler or transform knows what comes after the first two questions.
    if module.training or parameter is None or torch.compiler.is_compiling() or is_transformed():
        return getattr(module, name)
    if parameter.is_meta or parameter.is_inference() or record_of(parameter)[1].is_of_in_passing(parameter):
        return parameter
    nearest = _nearest(module.unitary_weight(name))
    if nearest is None or not (torch.is_grad_enabled() and parameter.requires_grad):
        return parameter if nearest is None else nearest
    return parameter + (nearest - parameter.detach())


@torch.no_grad()
def _nearest(weight: UnitaryWeight) -> Tensor | None:
    """The nearest unitary weight, stored as the weight is; None for one that is unitary, or not finite."""
    if float(unitarity_error(weight.matrix).amax()) <= rounding_tolerance(weight):
        weight.note()
        return None
    if torch.finfo(weight.parameter.dtype).bits < 32 or not torch.isfinite(weight.matrix).all():
        return None
    return weight.as_stored(nearest_unitary(weight.matrix))


def factored_weight(module: nn.Module, name: str) -> Sampled | None:
    """The weight of a layer if a forward pass now is to collect its gradient and not to leave it to autograd."""
    if not isinstance(module, UnitaryModule) or module.gradient == "dense" or not torch.is_grad_enabled():
        return None  # a scripted layer is no UnitaryModule; its gradients are dense
    parameter = own_parameter(module, name)
    # Where another tensor stands for the parameter, its gradient is its owner's.
    if parameter is None or not parameter.requires_grad or is_transformed():
        return None
    return parameter if torch.compiler.is_compiling() else module.unitary_weight(name)

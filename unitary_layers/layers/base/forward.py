"""What a forward pass asks of the unitary weights of its layer."""

import torch
from torch import nn

from ...linalg.transforms import is_transformed
from ...training.watch import watch
from ...training.weight import UnitaryWeight, record_of
from .module import UnitaryModule


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
    if torch.compiler.is_compiling() or is_transformed() or torch.jit.is_tracing():
        return
    for name in module._unitary:
        parameter = own_parameter(module, name)
        if parameter is None:
            continue
        seen = record_of(parameter)[1]  # see Note [Writes that torch does not count]
        if not seen.is_counted(parameter) or (parameter.is_cpu and seen.is_overlooked(parameter)):
            watch([module.unitary_weight(name)])


def factored_weight(module: nn.Module, name: str) -> UnitaryWeight | None:
    """The weight of a layer if a forward pass now is to collect its gradient and not to leave it to autograd."""
    if not isinstance(module, UnitaryModule) or module.gradient == "dense" or not torch.is_grad_enabled():
        return None  # a scripted layer is no UnitaryModule; its gradients are dense
    parameter = own_parameter(module, name)
    # Where another tensor stands for the parameter, its gradient is its owner's.
    if parameter is None or not parameter.requires_grad or is_transformed():
        return None
    return _weight_of(module, name)


@torch.compiler.disable  # a compiled graph would watch what is kept of all parameters
def _weight_of(module: UnitaryModule, name: str) -> UnitaryWeight:
    return module.unitary_weight(name)

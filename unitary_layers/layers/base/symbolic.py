"""A layer as one operation of the graphs of torch.fx, whichever tracer makes them."""

from typing import Any, ClassVar

import torch
from timm.layers import register_notrace_module
from torch import nn
from torch.fx import Proxy

# Note [One operation to FX]
# FX records a forward pass with proxies in the place of tensors, and a proxy has no shape to be checked. timm's tracer
# knows by their classes which modules it must not look into; torch's own takes those of torch.nn alone for single
# operations and runs the forward of all others. So a forward that is given a proxy adds a call of its layer to the
# graph. The graph then holds the layer itself, with its weights, its factored gradients, and all that is done for it
# outside of graphs. A layer that is traced alone has no name in its own tree; its graph finds it as ``itself``.
# The hooks of a layer into which FX has looked are recorded around that call, so that it must not run them again.


def has_hooks(module: nn.Module) -> bool:
    """Whether something waits for the calls of a module, or for their gradients."""
    hooks = (module._forward_pre_hooks, module._forward_hooks)
    return any((*hooks, module._backward_pre_hooks, module._backward_hooks))


class OneOperation(nn.Module):
    """A module whose forward is one operation to FX, and a call into Python to TorchScript."""

    __jit_unused_properties__: ClassVar[list[str]] = ["itself"]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register_notrace_module(cls)
        if "forward" in vars(cls):
            torch.jit.ignore(cls.forward)

    @property
    def itself(self) -> "OneOperation":
        """The module; see Note [One operation to FX]."""
        return self

    def recorded(self, first: Proxy, *others: Any) -> Any:
        """The result of a call with these arguments, as a proxy; see Note [One operation to FX]."""
        tracer, arguments = first.tracer, (first, *others)
        name = tracer.path_of_module(self) or "itself"  # type: ignore[attr-defined]  # of every tracer of modules
        if not (self._forward_hooks or self._forward_pre_hooks):
            return tracer.create_proxy("call_module", name, arguments, {})
        layer = tracer.create_proxy("get_attr", name, (), {})
        return tracer.create_proxy("call_method", "forward", (layer, *arguments), {})

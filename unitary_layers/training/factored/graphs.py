"""Factored gradients in compiled graphs, which leave to operators what backward does outside of the graph."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.fx.node import has_side_effect

from ...projunn.gradient import GradientOperator
from ..owners import owners
from ..weight import UnitaryOwner, UnitaryWeight
from .collect import add_gradient, operator_of
from .collect import collect as collect_eagerly

# Note [An operator that collects]
# A compiler takes the state of a module for a part of its graph, and breaks the graph where backward is to change it.
# Into an operator it does not look: so the tap of Note [Sampling inside backward] is one there, and its backward is
# another. A graph knows tensors and no modules. The operator is given the parameter, and finds the layer that holds it
# by the address of its memory, whatever object the tensor has become on its way through the graph. What goes through
# an operator is copied, since none may return what it was given. The graph of a backward is run as a whole, whatever
# part of it is asked for, so the operator asks the engine whether the parameter is to get a gradient now. It cannot
# return one: in a compiled graph torch.autograd.grad finds none of a factored weight, and a hook on it gets None.

Sampled = UnitaryWeight | nn.Parameter  # a weight whose gradient is collected; in a compiled graph, its parameter
# Of an operator that works on the state of a layer: a CUDA graph would replay its kernels without it.
IN_PYTHON: dict[str, Any] = {"tags": (torch.Tag.cudagraph_unsafe,)}

_found: dict[int, weakref.ref[UnitaryOwner]] = {}  # by address: who held that weight when it was last looked for


def weight_at(parameter: Tensor) -> UnitaryWeight:
    """The weight with a factored gradient whose memory is that of a tensor.

    Raises:
        RuntimeError: if no layer holds it any more.
    """
    address = parameter.data_ptr()
    for owner in _candidates(address):
        for weight in owner.own_unitary_weights() if _holds(owner, address) else ():
            if weight.collected is not None and weight.parameter.data_ptr() == address:
                _found[address] = weakref.ref(owner)
                return weight
    raise RuntimeError(
        f"expected a layer with the factored weight {tuple(parameter.shape)} that a compiled graph was made with, got "
        "none: it has been deleted, or its weight replaced, between forward and backward"
    )


def _holds(owner: UnitaryOwner, address: int) -> bool:
    """Whether a module has a parameter there; one that has lost its weights is asked for nothing else."""
    # The address of a parameter of another kind, such as those of FSDP, is not to be asked for.
    held = cast(nn.Module, owner)._parameters.values()
    return any(type(p) is nn.Parameter and p.data_ptr() == address for p in held)


def _candidates(address: int) -> Iterator[UnitaryOwner]:
    found = _found.get(address)
    if found is not None and (owner := found()) is not None:
        yield owner
    yield from owners()


def add_if_wanted(weight: UnitaryWeight, gradient: Callable[[], GradientOperator]) -> None:
    """:func:`add_gradient`, unless the backward that runs now was asked for other gradients alone."""
    if _is_wanted(weight.parameter):
        add_gradient(weight, gradient())


def _is_wanted(parameter: Tensor) -> bool:
    """Whether the backward that runs now is to accumulate the gradient of a leaf."""
    if torch._C._current_graph_task_id() < 0:  # a compiler has done away with the engine
        return True
    # Within an operator autograd is hidden.
    shown, hidden = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    with torch._C._ForceDispatchKeyGuard(shown, hidden - torch._C._dispatch_keys(parameter)), torch.enable_grad():
        accumulates = get_gradient_edge(parameter).node
    try:
        return torch._C._will_engine_execute_node(accumulates)
    except RuntimeError:  # as in collect.py: torch.autograd.grad was asked for the weight itself
        return False


def collect(y: Tensor, weight: Sampled, input: Tensor, *, adjoint: bool = False) -> Tensor:
    """:func:`unitary_layers.training.factored.collect.collect`, also in a compiled graph."""
    if isinstance(weight, UnitaryWeight):
        return collect_eagerly(y, weight, input, adjoint=adjoint)
    return _tap(y, weight, input.detach(), adjoint)


@torch.library.custom_op("unitary_layers::collect", mutates_args=())
def _tap(y: Tensor, parameter: Tensor, input: Tensor, adjoint: bool) -> Tensor:
    """A copy of y, the product of the input and a weight or its adjoint; backward collects the weight's gradient."""
    return y.clone()


@torch.library.custom_op("unitary_layers::collect_backward", mutates_args=(), **IN_PYTHON)
def _collect(delta: Tensor, parameter: Tensor, input: Tensor, adjoint: bool) -> Tensor:
    weight = weight_at(parameter)
    add_if_wanted(weight, lambda: operator_of(weight, *((input, delta) if adjoint else (delta, input))))
    return delta.clone()


@_tap.register_fake
@_collect.register_fake
def _(y: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(y)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, parameter, input, ctx.adjoint = inputs
    ctx.save_for_backward(parameter, input)


def _backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None, None]:
    return _collect(delta, *ctx.saved_tensors, ctx.adjoint), None, None, None


_tap.register_autograd(_backward, setup_context=_keep)
has_side_effect(torch.ops.unitary_layers.collect_backward.default)  # it may be all that a backward is for

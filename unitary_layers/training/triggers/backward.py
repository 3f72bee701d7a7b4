"""The unitary step when a backward pass has finished."""

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from ...linalg.transforms import is_transformed
from ..batch import step_of
from ..owners import weights_of
from ..step import step_from_gradients
from ..weight import UnitaryWeight, unitary_weights


class BackwardHook:
    """Steps when a backward has finished in which a unitary weight got a gradient. A copy of it does nothing."""

    def __init__(self, module: nn.Module | None = None) -> None:
        self.module: Callable[[], nn.Module | None] = weakref.ref(module) if module is not None else lambda: None
        self.fired: dict[int, list[Tensor]] = {}  # the weights that got a gradient, by the number of the backward
        self.handles: dict[int, RemovableHandle] = {}  # by the identity of the parameter

    def __reduce__(self) -> tuple[type["BackwardHook"], tuple[()]]:
        return BackwardHook, ()  # by which a deepcopy or a pickle of the module takes it along

    def __call__(self, module: nn.Module, *_: Any) -> None:
        """Hooks those of the weights that are new, or can have a gradient now; before each forward."""
        if torch.compiler.is_compiling() or is_transformed() or self.module() is not module:
            return
        self.handles = {i: handle for i, handle in self.handles.items() if handle.hooks_dict_ref() is not None}
        for weight in unitary_weights(module):
            p, handle = weight.parameter, self.handles.get(id(weight.parameter))
            is_hooked = handle is not None and handle.hooks_dict_ref() is p._post_accumulate_grad_hooks is not None
            # Under functional_call it may be a tensor that is no leaf, and of no business of ours.
            if isinstance(p, nn.Parameter) and p.is_leaf and p.requires_grad and not is_hooked:
                self.handles[id(p)] = p.register_post_accumulate_grad_hook(self.on_gradient)

    def on_gradient(self, parameter: Tensor) -> None:
        """Remembers a weight that has got a gradient, and asks to be called at the end of this backward."""
        # The engine calls back when this backward is over; the hook itself touches no weight and no gradient. A
        # backward is known by its number and not by a flag, which one that raised halfway would leave up.
        number = torch._C._current_graph_task_id()
        if number not in self.fired:
            self.fired[number] = []
            Variable._execution_engine.queue_callback(partial(self.when_backward_has_finished, number))
        self.fired[number].append(parameter)

    def when_backward_has_finished(self, number: int) -> None:
        """Steps the weights that got a gradient in that backward."""
        fired, module = self.fired.pop(number), self.module()
        for stale in [other for other in self.fired if other < number - 100]:  # no more are nested
            del self.fired[stale]  # of a backward that raised
        if module is None:  # but its weights live on, in other modules
            weights = list(weights_of(fired).values())
        else:
            refuse_distributed(module)
            ids = set(map(id, fired))
            weights = [weight for weight in unitary_weights(module) if id(weight.parameter) in ids]
        step_from_gradients(weights, lambda weight, gradient: step_of(weight, gradient, weight.rule))

    def remove(self) -> None:
        """Takes the hooks away from the weights."""
        while self.handles:
            self.handles.popitem()[1].remove()


def refuse_distributed(module: nn.Module) -> None:
    """Raises ``ValueError`` where gradients are yet to be summed over processes when backward has finished."""
    distributed = torch.distributed
    many = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if many or any(isinstance(m, DistributedDataParallel) for m in module.modules()):
        raise ValueError(
            "attach(model) steps before DistributedDataParallel has summed the gradients; expected "
            "attach(model, optimizer) or model.projunn_step() in a distributed run"
        )


def refuse_two_triggers(weights: Iterable[UnitaryWeight]) -> None:
    """Raises ``ValueError`` for weights that an optimiser is to step and that are stepped after backward already."""
    for weight in weights:
        hooks = weight.parameter._post_accumulate_grad_hooks
        if hooks and any(isinstance(getattr(hook, "__self__", None), BackwardHook) for hook in hooks.values()):
            raise ValueError(
                f"expected one trigger for the unitary weight {weight.name!r} {tuple(weight.matrix.shape)}, got "
                "attach(model), which steps it after each backward, beside attach(model, optimizer); remove() the "
                "handle of one"
            )

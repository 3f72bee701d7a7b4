"""What the triggers were given, if it is something else: an answer that says what to do."""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def check_attached(module: object, optimizer: object) -> Optimizer | None:
    """Refuses what is not a module, and not an optimiser or None.

    Returns:
        The optimiser; of a wrapper without step hooks, as accelerate's, the one inside it.

    Raises:
        TypeError: says what :func:`attach` should be given in its place.
    """
    if isinstance(module, Optimizer) and isinstance(optimizer, nn.Module):
        given = f"attach({type(module).__name__}, {type(optimizer).__name__})"
        raise TypeError(f"expected attach(module, optimizer), got {given}: swap the two")
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"expected a module, got {type(module).__name__}; attach(module, optimizer): pass the module itself"
        )
    if optimizer is None or isinstance(optimizer, Optimizer):
        inner: Any = optimizer
        while not hasattr(inner, "_optimizer_step_pre_hooks") and hasattr(inner, "optimizer"):
            inner = inner.optimizer
        return inner if isinstance(inner, Optimizer) else optimizer
    got = type(optimizer).__name__
    if isinstance(optimizer, type):
        got = f"the class {optimizer.__name__}: make one of its parameters first"
    elif isinstance(optimizer, LRScheduler):
        got += ": pass the optimiser that it schedules"
    raise TypeError(f"expected optimizer to be a torch.optim.Optimizer, got {got}")


def check_parameters(parameters: object) -> None:
    """Refuses a module in the place of its parameters.

    Raises:
        TypeError: for a module.
    """
    if isinstance(parameters, nn.Module):
        raise TypeError(f"expected parameters, got a {type(parameters).__name__}: pass its parameters()")

"""Tells of factored gradients that nobody takes: an optimiser alone does not see them, and the weights stand still."""

import threading
import warnings
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..weight import found_record

# Note [A sample that nobody takes]
# A layer with gradient="factored" leaves no .grad, so an optimiser that was never attached passes its weight by, and
# the samples of all backward passes pile up. What tells this from accumulation is that an optimiser which holds the
# weight has stepped and the sample is still there. Once may be a step in another order, optimizer.step() before
# projunn_step(); the second time is reported, once. Under attach and in ProjUNN no sample is left, and a weight that
# cannot move has nothing to miss.

_lock = threading.Lock()
_hooks: list[Any] = []


def notice_unused_samples() -> None:
    """From now on looks at what is left of factored gradients after the step of any optimiser of torch."""
    with _lock:
        if not _hooks:
            _hooks.append(register_optimizer_step_post_hook(_after_step))


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            record = found_record(parameter)
            if record is None or record[0].low_rank is None or not record[0].can_move:
                continue
            collected = record[0]
            collected.unused += 1
            if collected.unused == 2:
                warnings.warn(
                    f"{type(optimizer).__name__} has stepped twice without the factored gradient of the unitary "
                    f"weight {collected.name!r} {tuple(parameter.shape)}, which it does not see: call "
                    "attach(model, optimizer) once, or model.projunn_step() after each backward",
                    stacklevel=3,
                )

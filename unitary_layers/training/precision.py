"""The precision in which unitary weights are computed, whatever region of autocast asks for it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_autocast(device: str) -> bool:
    """Whether a region of autocast is open for a type of device; the meta device has none."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def output_dtype(x: Tensor) -> torch.dtype:
    """The dtype of what is computed from ``x``: its own, or what a region of autocast asks for in the place of it.

    As torch's own operations, that leaves float64 and complex numbers alone.
    """
    device = x.device.type
    is_lowered = is_autocast(device) and not x.is_complex() and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_lowered else x.dtype


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Full precision on a type of device, also where there is no autocast, as on the meta device."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()

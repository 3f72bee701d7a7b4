"""The precision in which unitary weights are computed, whatever region of autocast asks for it."""

from contextlib import AbstractContextManager, nullcontext

import torch


def is_autocast(device: str) -> bool:
    """Whether a region of autocast is open for a type of device; the meta device has none."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Full precision on a type of device, also where there is no autocast, as on the meta device."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()

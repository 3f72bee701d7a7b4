"""Loading a state dict into a module with unitary weights: one that is too new is refused, others are repaired."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..linalg import nearest_unitary, unitarity_error
from ..projunn.watch import rounding_tolerance
from ..projunn.weight import UnitaryWeight, as_matrix

HALF = (torch.float16, torch.bfloat16)
STATE_VERSION = 1  # of the names, shapes and meaning of what a state dict holds; 1 is the first
STATE = ("count", "previous", "row_moments", "column_moments")  # buffers of a weight, after its name


def is_too_new(metadata: dict[str, Any], name: str, errors: list[str]) -> bool:
    """Whether a later release wrote a module's part of a state dict in a way that is not known here; an error then.

    Args:
        metadata: of that part; without a version, as from safetensors, it is taken to be known.
        name: of the module.
        errors: takes the message.
    """
    version = metadata.get("version")
    if version is None or version <= STATE_VERSION:
        return False
    errors.append(
        f"{name}: expected a state dict of version {STATE_VERSION} or older, got version {version}, which a later "
        "release of unitary_layers wrote; it was not loaded"
    )
    return True


def prepare_state(
    state_dict: dict[str, Any], prefix: str, kept: Iterable[str], weights: Iterable[UnitaryWeight], errors: list[str]
) -> None:
    """Makes the part of a state dict under a prefix fit to be loaded, in place.

    Args:
        state_dict: as ``_load_from_state_dict`` gets it: a copy, of which entries may be replaced.
        prefix: of the module's keys.
        kept: names of its parameters and buffers that never fall below float32.
        weights: its own unitary weights.
        errors: takes a message for each weight with a NaN or an infinity.
    """
    for key in (prefix + name for name in kept):  # assign=True takes a tensor as it is
        if key in state_dict and state_dict[key].dtype in HALF:
            state_dict[key] = state_dict[key].float()
    for weight in weights:
        key = prefix + weight.name
        if key in state_dict and state_dict[key].shape == weight.parameter.shape:
            state_dict[key] = _checked(key, state_dict[key], weight, errors)
        _complete(state_dict, key, weight)


def _checked(key: str, loaded: Tensor, weight: UnitaryWeight, errors: list[str]) -> Tensor:
    """What to load for a unitary weight: itself, the nearest unitary one, or (with an error) the present one."""
    if loaded.is_meta:
        return loaded
    stored = loaded.detach().contiguous()
    matrix = as_matrix(stored, weight.is_complex)
    if not torch.isfinite(matrix).all():
        errors.append(f"expected a finite unitary weight {key!r}, got NaN or infinity; it was not loaded")
        return weight.parameter.detach()
    error, tolerance = float(unitarity_error(matrix).amax()), rounding_tolerance(weight)
    if error <= tolerance:
        return loaded if loaded.is_contiguous() else stored
    warnings.warn(
        f"the loaded weight {key!r} is not unitary: expected |W^H W - I|_F <= {tolerance:.1e}, got {error:.1e}; "
        "the nearest unitary matrix is used instead",
        stacklevel=2,
    )
    nearest = nearest_unitary(matrix.to(weight.matrix.dtype))
    return torch.view_as_real(nearest) if weight.is_complex else nearest


def _complete(state_dict: dict[str, Any], key: str, weight: UnitaryWeight) -> None:
    """Fills in what a state dict of torch's own layer, or of another sampler, does not have."""
    device = state_dict[key].device if key in state_dict else weight.count.device
    state_dict.setdefault(f"{key}_count", _or_zeros(weight.count, device))
    for state, buffer in zip(STATE[1:], (weight.previous, *(weight.moments or (None, None))), strict=True):
        name = f"{key}_{state}"
        if buffer is None:
            state_dict.pop(name, None)
        elif name not in state_dict or state_dict[name].shape != buffer.shape:
            state_dict[name] = _or_zeros(buffer, device)


def _or_zeros(buffer: Tensor, device: torch.device) -> Tensor:
    """The buffer itself, or zeros where it is on the meta device and so has no values."""
    return torch.zeros_like(buffer, device=device) if buffer.is_meta else buffer

"""Loading a state dict into a module with unitary weights: what is not unitary is repaired."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..linalg import nearest_unitary, unitarity_error
from ..projunn.weight import UnitaryWeight, as_matrix

HALF = (torch.float16, torch.bfloat16)
STATE = ("count", "previous", "row_moments", "column_moments")  # buffers of a weight, after its name


class UnitaryLoading(nn.Module):
    """The part of :class:`UnitaryModule` that ``load_state_dict`` goes through."""

    def own_unitary_weights(self) -> Iterator[UnitaryWeight]:
        """The unitary weights that this module itself holds, without those of its children."""
        raise NotImplementedError

    def _kept_names(self) -> list[str]:
        """The parameters and buffers that never fall below float32."""
        raise NotImplementedError

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *reports: list[str]
    ) -> None:
        for key in (prefix + name for name in self._kept_names()):  # assign=True takes a tensor as it is
            if key in state_dict and state_dict[key].dtype in HALF:
                state_dict[key] = state_dict[key].float()
        for weight in self.own_unitary_weights():
            key = prefix + weight.name
            if key in state_dict and state_dict[key].shape == weight.parameter.shape:
                state_dict[key] = self._checked(key, state_dict[key], weight, reports[-1])
            self._complete(state_dict, key, weight)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *reports)

    def _checked(self, key: str, loaded: Tensor, weight: UnitaryWeight, errors: list[str]) -> Tensor:
        """What to load for a unitary weight: itself, the nearest unitary one, or (with an error) the present one."""
        if loaded.is_meta:
            return loaded
        stored = loaded.detach().contiguous()
        matrix = as_matrix(stored, weight.is_complex)
        if not torch.isfinite(matrix).all():
            errors.append(f"expected a finite unitary weight {key!r}, got NaN or infinity; it was not loaded")
            return weight.parameter.detach()
        error, tolerance = float(unitarity_error(matrix).amax()), load_tolerance(weight)
        if error <= tolerance:
            return loaded if loaded.is_contiguous() else stored
        warnings.warn(
            f"the loaded weight {key!r} is not unitary: expected |W^H W - I|_F <= {tolerance:.1e}, got {error:.1e}; "
            "the nearest unitary matrix is used instead",
            stacklevel=2,
        )
        nearest = nearest_unitary(matrix.to(weight.matrix.dtype))
        return torch.view_as_real(nearest) if weight.is_complex else nearest

    def _complete(self, state_dict: dict[str, Any], key: str, weight: UnitaryWeight) -> None:
        """Fills in what a state dict of torch's own layer, or of another sampler, does not have."""
        device = state_dict[key].device if key in state_dict else weight.count.device
        state_dict.setdefault(f"{key}_count", _or_zeros(weight.count, device))
        for state in STATE[1:]:
            name, buffer = f"{key}_{state}", getattr(self, f"{weight.name}_{state}")
            if buffer is None:
                state_dict.pop(name, None)
            elif name not in state_dict or state_dict[name].shape != buffer.shape:
                state_dict[name] = _or_zeros(buffer, device)


def _or_zeros(buffer: Tensor, device: torch.device) -> Tensor:
    """The buffer itself, or zeros where it is on the meta device and so has no values."""
    return torch.zeros_like(buffer, device=device) if buffer.is_meta else buffer


def load_tolerance(weight: UnitaryWeight) -> float:
    """The ``|W^H W - I|_F`` up to which a loaded matrix counts as unitary: 10 n eps of the layer's precision."""
    return 10 * weight.matrix.size(-1) * torch.finfo(weight.parameter.dtype).eps

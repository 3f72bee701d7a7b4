"""Loading a state dict into a module with unitary weights: one that is too new is refused, others are repaired.

And casting such a module to a higher precision, in which what was unitary is so no more.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...linalg import nearest_unitary, unitarity_error
from ...linalg.check import REAL
from ...training.memory import Memory
from ...training.watch import rounding_tolerance
from ...training.weight import UnitaryOwner, UnitaryWeight, clear_collected, record_of
from .inputs import HALF
from .states import GONE, STATE, state_names

STATE_VERSION = 2  # of the names, shapes and meaning of what a state dict holds; see Note [Format 1]
# Note [Format 1]
# In the first format a rectangular weight was stored as a square matrix of its larger side, of which the first rows and
# columns were used, and so were the matrices of its update. What is used is cut out of those. Which format a tensor has
# is told by its shape: safetensors and averages of weights keep no version.

SIGNED = ("_previous", *(f"_{name}" for name in Memory._fields))  # those that may be negative


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
    state_dict: dict[str, Any],
    prefix: str,
    kept: Mapping[str, bool],
    weights: Iterable[UnitaryWeight],
    errors: list[str],
    *,
    assign: bool = False,
) -> None:
    """Makes the part of a state dict under a prefix fit to be loaded, in place; what is no tensor torch will report.

    Args:
        state_dict: as ``_load_from_state_dict`` gets it: a copy, of which entries may be replaced.
        prefix: of the module's keys.
        kept: names of its parameters and buffers that never fall below float32; whether they are stored as pairs, for
            which complex numbers may come.
        weights: its own unitary weights.
        errors: takes a message for each weight or buffer that cannot be one; the present value then stays.
        assign: whether the module takes the tensors themselves, and so their dtype.
    """
    in_half: dict[str, torch.dtype] = {}
    for name, is_pairs in kept.items():
        value = state_dict.get(key := prefix + name)
        if not isinstance(value, Tensor):
            continue
        if is_pairs and value.is_complex() and value.layout == torch.strided:
            value = torch.view_as_real(value.detach().resolve_conj())
        if value.dtype in HALF:  # assign=True takes a tensor as it is
            in_half[key], value = value.dtype, value.float()
        state_dict[key] = value
    for weight in weights:
        key = prefix + weight.name
        _cut_squares(state_dict, key, weight)
        _complete(state_dict, key, weight)
        for name, present in _held(key, weight).items():
            value = state_dict.get(name)
            if not isinstance(value, Tensor) or value.shape != present.shape or value.is_meta:
                continue
            if flaw := _flaw(name, value, signed=name.endswith(SIGNED) or name == key):
                errors.append(f"expected {flaw}; it was not loaded")
                state_dict[name] = present
            elif name == key:
                state_dict[key] = _on_manifold(key, value, weight, assign, in_half.get(key))
            elif assign:  # a state in the precision of its weight, a count in integers
                exact = present.dtype == torch.int64
                state_dict[name] = value.to(torch.int64 if exact else getattr(state_dict.get(key), "dtype", None))


@contextmanager
def cast_along(owner: UnitaryOwner, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Around a cast of the stored tensors: factored gradients go along, and what was unitary is so in the new dtype.

    Args:
        owner: whose own unitary weights are cast.
        fn: casts a real tensor.
    """
    weights = list(owner.own_unitary_weights())
    found = {w.name: w.collected.content for w in weights if w.collected is not None}
    contents = {name: content.moved(fn) for name, content in found.items() if content is not None}
    clear_collected(weights)  # what has no memory of its own is not torch's to cast
    before = {w.name: (rounding_tolerance(w), w.parameter.is_meta) for w in weights}
    yield
    for weight in owner.own_unitary_weights():
        _settle(weight, *before[weight.name])
        if weight.name in contents:
            record_of(weight.parameter)[0].put(contents[weight.name])


def _settle(weight: UnitaryWeight, tolerance: float, was_meta: bool) -> None:
    """Makes a weight unitary in the higher precision to which it was cast; whatever is else with it is left to watch.

    Args:
        weight: as it is now.
        tolerance: up to which error it counted as unitary.
        was_meta: whether it was on the meta device, and so has no values yet.
    """
    weight.seen.cause = "to_empty" if was_meta else weight.seen.cause
    if rounding_tolerance(weight) >= tolerance or weight.parameter.is_meta:
        return
    if float(unitarity_error(weight.matrix).amax()) <= tolerance:  # one that is further off is to be reported
        weight.matrix.copy_(nearest_unitary(weight.matrix))
        weight.note()


def _held(key: str, weight: UnitaryWeight) -> dict[str, Tensor]:
    """What a module holds of a weight, by the keys of its state dict."""
    names = (key, *state_names(key))
    tensors = (weight.parameter.detach(), weight.count, *_states(weight))
    return {name: tensor for name, tensor in zip(names, tensors, strict=True) if tensor is not None}


def _states(weight: UnitaryWeight) -> tuple[Tensor | None, ...]:
    """The buffers of :data:`STATE` but the count, in their order; None for those that the rule does not need."""
    return weight.previous, *(weight.memory or [None] * len(Memory._fields))


def _cut_squares(state_dict: dict[str, Any], key: str, weight: UnitaryWeight) -> None:
    """Cuts what is used out of the matrices of a weight in a state dict; see Note [Format 1]."""
    (m, n), pair = weight.shape, (2,) if weight.is_complex else ()
    if m == n:
        return
    square = torch.Size((*weight.matrix.shape[:-2], max(m, n), max(m, n), *pair))
    if getattr(state_dict.get(key), "shape", None) != square:
        return
    batch = [slice(None)] * (weight.matrix.ndim - 2)
    used = {"": (slice(m), slice(n)), "_momentum": (slice(m), slice(n)), "_previous": (slice(m),)}
    for state, part in used.items():
        index = (*batch, *part)
        if isinstance(value := state_dict.get(key + state), Tensor) and value.ndim >= len(index):
            state_dict[key + state] = value[index].contiguous()


def _flaw(name: str, loaded: Tensor, *, signed: bool) -> str | None:
    """What was expected of a tensor to be loaded and what came, if it is unfit."""
    what = f"{'buffer' if name.endswith(STATE) else 'unitary weight'} {name!r}"
    if loaded.layout != torch.strided or loaded.dtype not in (*REAL, torch.int64, torch.int32):
        return f"a dense real {what}, got {loaded.dtype} of layout {loaded.layout}"
    if not torch.isfinite(loaded).all():
        return f"a finite {what}, got NaN or infinity"
    if not signed and (loaded < 0).any():
        return f"a {what} of at least 0, got {loaded.min().item():g}"
    return None


def _on_manifold(
    key: str, loaded: Tensor, weight: UnitaryWeight, assign: bool, half: torch.dtype | None = None
) -> Tensor:
    """What to load for a unitary weight: itself, or the nearest unitary one; ``half`` is the dtype of one that came so.

    Warns:
        UserWarning: for a weight that is not unitary in the precision that it comes in.
    """
    stored = loaded.detach().to(torch.promote_types(loaded.dtype, torch.float32)).contiguous()
    matrix = weight.as_matrix(stored)
    dtype = stored.dtype if assign else weight.parameter.dtype
    error, tolerance = float(unitarity_error(matrix).amax()), rounding_tolerance(weight, dtype)
    if error <= tolerance and half is None:  # of a wide one it is within it by the rounding to half precision too
        return loaded if loaded.is_contiguous() and loaded.dtype == stored.dtype else stored
    nearest = nearest_unitary(wide := weight.as_matrix(stored.to(dtype)))
    if error > rounding_tolerance(weight, half or stored.dtype):
        moved = float(torch.linalg.vector_norm(nearest - wide) / torch.linalg.vector_norm(wide))
        warnings.warn(
            f"the loaded weight {key!r} is not unitary: expected |W^H W - I|_F <= {tolerance:.1e}, got {error:.1e}; "
            f"the nearest unitary matrix is used instead, which is |W' - W| / |W| = {moved:.1e} away",
            stacklevel=2,
        )
    return weight.as_stored(nearest)


def _complete(state_dict: dict[str, Any], key: str, weight: UnitaryWeight) -> None:
    """Fills in what a state dict of torch's own layer, or of another sampler, lacks; leaves out what is gone."""
    for state in GONE:
        state_dict.pop(f"{key}_{state}", None)
    device = getattr(state_dict.get(key), "device", weight.count.device)
    state_dict.setdefault(f"{key}_count", _or_zeros(weight.count, device))
    for state, buffer in zip(STATE[1:], _states(weight), strict=True):
        name = f"{key}_{state}"
        if buffer is None:
            state_dict.pop(name, None)
        elif name not in state_dict or getattr(state_dict[name], "shape", buffer.shape) != buffer.shape:
            state_dict[name] = _or_zeros(buffer, device)


def _or_zeros(buffer: Tensor, device: torch.device) -> Tensor:
    """The buffer itself, or zeros where it is on the meta device and so has no values."""
    return torch.zeros_like(buffer, device=device) if buffer.is_meta else buffer

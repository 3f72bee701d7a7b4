"""What the layers ask of their options and inputs before they use them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...linalg.check import FLOATING, check_dense
from ...projunn.rule import UpdateRule
from ...projunn.sampling import LINEAR_SAMPLERS

GRADIENTS = ("dense", "factored")
HALF = (torch.float16, torch.bfloat16)
LARGEST = 2**31 - 1  # of a size; beyond it kernels lose count before the memory ends

Sides = int | Sequence[int]


def as_real(moved: Tensor, t: Tensor) -> Tensor:
    """What a real tensor ``t`` has become in a cast, which takes from a complex dtype the precision alone."""
    return t.to(moved.device, moved.dtype.to_real()) if moved.is_complex() and not t.is_complex() else moved


def as_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of a layer, torch's default one for None.

    Raises:
        TypeError: for what is not a dtype.
        ValueError: for one that is not real or complex floating point, of at least 16 bits (complex: 64).
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"expected a torch.dtype, got {dtype!r}")
    if dtype not in FLOATING:
        raise ValueError(f"expected a real or complex floating point dtype, got {dtype}")
    return dtype


def as_size(name: str, value: int) -> int:
    """A size as a plain integer.

    Raises:
        TypeError: for what is not an integer.
        ValueError: for one below 1 or above LARGEST.
    """
    if not hasattr(type(value), "__index__"):
        raise TypeError(f"expected {name} >= 1, an integer, got {value!r}")
    size = value.__index__()
    if not 1 <= size <= LARGEST:
        raise ValueError(f"expected {name} {'>= 1' if size < 1 else f'<= {LARGEST}'}, got {size}")
    return size


def as_sides(name: str, value: Sides, sides: int, least: int = 1) -> tuple[int, ...]:
    """One integer a side, of at least ``least``; a single one stands for all. Raises ``ValueError`` otherwise."""
    given = (value,) * sides if isinstance(value, int) else value
    valid = isinstance(given, Sequence) and len(given) == sides
    if not valid or any(not isinstance(v, int) or isinstance(v, bool) or not least <= v <= LARGEST for v in given):
        raise ValueError(f"expected {name} to be an integer of at least {least}, or {sides} of them, got {value!r}")
    return tuple(given)


def check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    """Refuses numbers of channels that groups does not divide, by a ``ValueError``."""
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            "expected numbers of channels that groups divides, got "
            f"in_channels={in_channels}, out_channels={out_channels}, groups={groups}"
        )


def check_input(layer: str, x: Tensor, like: Tensor) -> None:
    """Refuses an input that a convolution with parameters like this one would take for something else.

    Raises:
        TypeError: for what is not a tensor.
        ValueError: for a sparse or quantised tensor.
        RuntimeError: for another dtype, if not a half precision one, or another device.
    """
    check_dense(f"input of {layer}", x)
    if x.device != like.device or (x.dtype not in HALF and dtype_differs(x, like)):
        raise RuntimeError(
            f"{layer}: expected input of {like.dtype} on {like.device} as the weight, got {x.dtype} on {x.device}"
        )


def as_half(value: Tensor, like: Tensor | None) -> Tensor:
    """A weight, in half precision where a tensor ``like`` is: that of a forward pass.

    Raises:
        RuntimeError: for a complex one, of which its real part alone would be left.
    """
    if like is None or like.dtype not in HALF:
        return value
    if value.is_complex():
        raise RuntimeError(f"expected input of {value.dtype} as the weight, got {like.dtype}")
    return value.to(like.dtype)


def check_stored(name: str, parameter: Tensor, shape: torch.Size) -> None:
    """Refuses a tensor that was assigned in the place of a unitary weight and cannot be one.

    A flat one is left to the step: FullyShardedDataParallel puts a part of the weight there, for as long as it is away.

    Raises:
        ValueError: for a matrix of another shape than what is stored, or not real and at least float32.
    """
    if parameter.ndim > 1 and (parameter.shape != shape or parameter.dtype not in (torch.float32, torch.float64)):
        raise ValueError(
            f"expected float32 or float64 {tuple(shape)} in the place of the unitary weight {name!r}, got "
            f"{parameter.dtype} {tuple(parameter.shape)}; nothing was assigned"
        )


def dtype_differs(x: Tensor, like: Tensor) -> bool:
    """Whether the dtypes differ and autocast is not there to mend it."""
    return x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type)


def check_rule(rule: object, gradient: str) -> None:
    """Refuses what is no rule, or none for gradients of this form.

    Raises:
        ValueError: for another object, an unknown form, or a sampler that needs a matrix where there is none.
    """
    if not isinstance(rule, UpdateRule):
        expected = 'update to be an UpdateRule, such as UpdateRule("D") or UpdateRule(rank=8)'
        raise ValueError(f"expected {expected}, got {rule!r}")
    if gradient not in GRADIENTS:
        raise ValueError(f"expected gradient to be one of {GRADIENTS}, got {gradient!r}")
    if gradient == "factored" and rule.sampler not in LINEAR_SAMPLERS:
        raise ValueError(
            f'expected a sampler of {LINEAR_SAMPLERS} with gradient="factored", which forms no matrix; got '
            f"{rule.sampler!r}"
        )

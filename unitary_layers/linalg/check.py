"""What the functions on matrices ask of a tensor before they look at its numbers."""

import torch
from torch import Tensor

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATING = (*REAL, torch.complex64, torch.complex128)
PRECISE = FLOATING[2:]  # what products and decompositions are taken in


def check_dense(name: str, x: Tensor, *, sparse: bool = False) -> None:
    """Refuses what is not a tensor with all its numbers in memory, or (``sparse``) with those that are not zero.

    Raises:
        TypeError: for another object.
        ValueError: for a sparse or a quantised tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"expected {name} to be a tensor, got {type(x).__name__}")
    if x.is_quantized or not (sparse or x.layout == torch.strided):
        raise ValueError(f"expected {name} to be a dense tensor, got {x.dtype} of layout {x.layout}")


def check_matrix(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATING) -> None:
    """Refuses what is not a dense floating point matrix ``(..., m, n)``.

    Raises:
        TypeError: for what is not a tensor.
        ValueError: for another layout, dtype or shape.
    """
    check_dense(name, x)
    check_dtype(f"{name} to be a floating point matrix", x.dtype, dtypes)
    if x.ndim < 2:
        raise ValueError(f"expected {name} of shape (..., m, n), got shape {tuple(x.shape)}")


def check_generator(generator: torch.Generator | None) -> None:
    """Refuses what is neither a generator nor None.

    Raises:
        TypeError: for another object.
    """
    if not isinstance(generator, (torch.Generator, type(None))):
        raise TypeError(f"expected generator to be a torch.Generator or None, got {type(generator).__name__}")


def check_dtype(what: str, dtype: torch.dtype, dtypes: tuple[torch.dtype, ...] = FLOATING) -> None:
    """Refuses a dtype that is not among these.

    Raises:
        TypeError: for what is not a dtype.
        ValueError: for another dtype.
    """
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"expected {what}, of a torch.dtype, got {dtype!r}")
    if dtype not in dtypes:
        raise ValueError(f"expected {what}, of a dtype in {dtypes}, got {dtype}")

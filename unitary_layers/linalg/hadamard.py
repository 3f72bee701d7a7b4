"""Hadamard matrices, and their products by the fast Walsh-Hadamard transform.

Source: J. J. Sylvester, "Thoughts on inverse orthogonal matrices", Philosophical Magazine 34, 1867 (the matrices).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Note [A fast transform by two products]
# A Hadamard matrix of order a b is the Kronecker product of those of orders a and b, so that H x, for x as an a x b
# matrix X, is H_a X H_b: n (a + b) additions in the place of n^2. The butterflies of the textbook take n log2 n, but
# each of them moves all numbers through memory: on a CPU at n = 512, 128 rows, one thread, they took 724 microseconds,
# the product with the whole matrix 402, and the two products with a and b near sqrt(n) 69. Up to n = 128 the whole
# matrix is fastest.
WHOLE = 128


def check_order(name: str, n: int, block: int | None = None) -> None:
    """Refuses a size that has no Hadamard matrix of Sylvester's.

    Raises:
        ValueError: if n, or the block where there is one, is no power of two, or the block does not divide n.
    """
    order, what = (n, name) if block is None else (block, "block")
    if order < 1 or order & (order - 1):
        hint = "; block=m takes one of order m for each m features" if block is None else ""
        raise ValueError(f"expected {what} to be a power of two, the order of a Hadamard matrix, got {order}{hint}")
    if n % order:
        raise ValueError(f"expected {name} to be a multiple of block={block}, got {n}")


def hadamard_matrix(n: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """Sylvester's Hadamard matrix ``(n, n)``: entries 1 and -1, symmetric, with ``H H = n I``.

    Raises:
        ValueError: if n is no power of two.
    """
    check_order("n", n)
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    for _ in range(n.bit_length() - 1):
        above = torch.cat([matrix, matrix], dim=1)
        matrix = torch.cat([above, torch.cat([matrix, -matrix], dim=1)])
    return matrix


def walsh_hadamard(x: Tensor, block: int | None = None) -> Tensor:
    """The orthogonal Walsh-Hadamard transform ``H x / sqrt(n)`` along the last dimension.

    Args:
        x: ``(..., n)``, real or complex.
        block: transforms each so many neighbours by themselves; all n if None.

    Returns:
        ``(..., n)``. The transform of the transform is x.

    Raises:
        ValueError: if n, or the block where there is one, is no power of two, or the block does not divide n.
    """
    return walsh_hadamard_like(x, block)(x)


def walsh_hadamard_like(x: Tensor, block: int | None = None) -> Callable[[Tensor], Tensor]:
    """:func:`walsh_hadamard` for tensors of the last dimension, dtype and device of x, to be used many times."""
    n = x.size(-1)
    check_order("the last dimension", n, block)
    m = n if block is None else block
    a = 1 if m <= WHOLE else 1 << (m.bit_length() - 1) // 2  # see Note [A fast transform by two products]
    left, right = (hadamard_matrix(k, dtype=x.dtype, device=x.device) for k in (a, m // a))
    right = right / math.sqrt(m)
    if m == n and a == 1:
        return lambda t: t @ right
    if a == 1:
        return lambda t: (t.unflatten(-1, (-1, m)) @ right).flatten(-2)
    return lambda t: (left @ (t.unflatten(-1, (n // m, a, m // a)) @ right)).flatten(-3)

"""The symmetries of a polygon: how they act on themselves, and on images.

The 2n elements of the dihedral group of order 2n are ``r^a s^e``, turns by a n-th parts of a circle behind a reflection
or none, numbered ``a + n e``; ``s r = r^-1 s``.
"""

import torch
from torch import Tensor


def dihedral_moves(n: int) -> Tensor:
    """Products of each element from the right with a turn, the turn back, and the reflection.

    Args:
        n: corners of the polygon.

    Returns:
        int64 ``(3, 2 n)``, a permutation of the elements a row, as :class:`unitary_layers.UnitaryGroupConv` takes it.

    Raises:
        ValueError: for ``n < 1``.

    Example:
        >>> dihedral_moves(3)
        tensor([[1, 2, 0, 5, 3, 4],
                [2, 0, 1, 4, 5, 3],
                [3, 4, 5, 0, 1, 2]])
    """
    if n < 1:
        raise ValueError(f"expected a polygon of at least one corner, got n={n}")
    turns = torch.arange(n, device="cpu")  # also where a model is made without data
    there, back = turns.roll(-1), turns.roll(1)  # r^a s r = r^(a - 1) s
    moves = [(there, back + n), (back, there + n), (turns + n, turns)]
    return torch.stack([torch.cat(halves) for halves in moves])


def dihedral_views(images: Tensor) -> Tensor:
    """The eight views of square images: what the inverse of each symmetry of the square makes of them.

    A quarter turn of the images, or a reflection, moves the views as a product from the left moves the elements of the
    group. So any map of each view by itself, :class:`unitary_layers.UnitaryGroupConv` with ``dihedral_moves(4)`` behind
    it, and a mean over the views make an output that no such turn or reflection changes.

    Args:
        images: ``(..., c, h, h)``.

    Returns:
        ``(..., c, 8, h, h)``, view g = r^a s^e at ``a + 4 e``, with r a quarter turn against the clock and s from left
        to right.

    Raises:
        ValueError: for images that are not square.
    """
    if images.ndim < 2 or images.size(-1) != images.size(-2):
        raise ValueError(f"expected square images (..., h, h), got shape {tuple(images.shape)}")
    turned = torch.stack([images.rot90(-a, (-2, -1)) for a in range(4)], -3)
    return torch.cat([turned, turned.flip(-1)], -3)

"""Signals on a periodic grid: pixels to channels and back, padding all around."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ..check import check_dense


def space_to_depth(x: Tensor, stride: Sequence[int]) -> Tensor:
    """``(..., c, *size)`` to ``(..., c * prod(stride), *size / stride)``: ``pixel_unshuffle`` on any number of sides.

    Raises:
        TypeError, ValueError: for what is not a dense tensor with a dimension more than the stride has, or a stride
            that is not of positive integers.
        ValueError: if a side is not a multiple of its stride.
    """
    if _is_trivial(x, stride):
        return x
    size = tuple(x.shape[-len(stride) :])
    if any(n % s for n, s in zip(size, stride, strict=True)):
        raise ValueError(f"expected sides that are multiples of the stride {tuple(stride)}, got {size}")
    wide, deep, lengths = _pattern(stride)
    return rearrange(x, f"{wide} -> {deep}", **lengths)


def depth_to_space(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The inverse of :func:`space_to_depth`, ``pixel_shuffle`` on any number of sides; raises as it does."""
    if _is_trivial(x, stride):
        return x
    channels, pixels = x.size(-1 - len(stride)), math.prod(stride)
    if channels % pixels:
        raise ValueError(f"expected channels in multiples of {pixels} for the stride {tuple(stride)}, got {channels}")
    wide, deep, lengths = _pattern(stride)
    return rearrange(x, f"{deep} -> {wide}", **lengths)


def _is_trivial(x: Tensor, stride: Sequence[int]) -> bool:
    """Whether a stride changes nothing, after a look at both."""
    check_dense("x", x)
    if not isinstance(stride, Sequence) or not all(isinstance(s, int) and s >= 1 for s in stride):
        raise ValueError(f"expected a stride of integers of at least 1, got {stride!r}")
    if x.ndim <= len(stride):
        raise ValueError(f"expected (..., channels, *sides) for the stride {tuple(stride)}, got shape {tuple(x.shape)}")
    return all(s == 1 for s in stride)


def _pattern(stride: Sequence[int]) -> tuple[str, str, dict[str, int]]:
    """As for a stride of two sides: "... c (n0 s0) (n1 s1)", "... (c s0 s1) n0 n1" and the lengths s0 and s1."""
    sides = range(len(stride))
    wide = "... c " + " ".join(f"(n{i} s{i})" for i in sides)
    deep = f"... (c {' '.join(f's{i}' for i in sides)}) " + " ".join(f"n{i}" for i in sides)
    return wide, deep, {f"s{i}": s for i, s in enumerate(stride)}


def pad_periodic(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """``x`` ``(b, c, *size)`` continued periodically by so many pixels on each side, any number of times around."""
    for dim, (b, a) in enumerate(zip(before, after, strict=True), start=2):
        if b or a:
            x = _pad_side(x, dim, b, a)
    return x


def _pad_side(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    n = x.size(dim)
    if before + after > n:
        return x.index_select(dim, torch.arange(-before, n + after, device=x.device) % n)
    # Forward and backward are a copy each; F.pad(mode="circular") was measured to take two to three times as long.
    first, middle, last = x.split([after, n - before - after, before], dim)
    return torch.cat([last, first, middle, last, first], dim)


def fold_periodic(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """The adjoint of :func:`pad_periodic`: ``x`` ``(b, c, *size)`` with what so many pixels of each side hold added.

    They go to where they were copied from, any number of times around.
    """
    for dim, (b, a) in enumerate(zip(before, after, strict=True), start=2):
        if b or a:
            x = _fold_side(x, dim, b, a)
    return x


def _fold_side(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    n = x.size(dim) - before - after
    if before + after > n:
        places = torch.arange(-before, n + after, device=x.device) % n
        return x.new_zeros([*x.shape[:dim], n, *x.shape[dim + 1 :]]).index_add(dim, places, x)
    head, first, middle, last, tail = x.split([before, after, n - before - after, before, after], dim)
    return torch.cat([first + tail, middle, last + head], dim)

"""Products of unitary matrices along sentences, and their gradients, on plain tensors: a loop, and what a node needs.

The words of a vocabulary are their matrices, ``left`` ``(V, n, n)`` alone, or two thin factors, ``left`` and ``right``
``(V, n, r)``, of which word w is ``I + left_w right_w^H``.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .packed import alive_of, states_before

# Note [Gradients of words]
# A batch of B sentences of T words takes its matrices from V of them. Left to autograd, each step would gather B
# matrices, keep them, and scatter their gradients into a tensor of V matrices. The states alone are kept here: backward
# gathers the matrices again, carries the gradient through them, and keeps it beside the states before. Then the rows
# are sorted by their words, and each word that occurs gets one product of matrices over all of its places.


class Words(NamedTuple):
    """The matrices of a vocabulary, or of a batch of words.

    Attributes:
        left: ``(V, n, n)``, or the left factors ``(V, n, r)``.
        right: the right factors ``(V, n, r)``, or None.
    """

    left: Tensor
    right: Tensor | None = None

    @property
    def mH(self) -> "Words":
        """The adjoint of each."""
        return Words(self.left.mH) if self.right is None else Words(self.right, self.left)

    def at(self, ids: Tensor) -> "Words":
        """Those of some words ``(batch,)``."""
        return Words(*(None if part is None else part.index_select(0, ids) for part in self))  # type: ignore[arg-type]

    def __matmul__(self, h: Tensor) -> Tensor:
        """Each word times a state of its own, ``(batch, n)``."""
        column = h.unsqueeze(-1)
        if self.right is None:
            return torch.matmul(self.left, column).squeeze(-1)
        return h + torch.matmul(self.left, self.inner(h).unsqueeze(-1)).squeeze(-1)

    def inner(self, h: Tensor) -> Tensor:
        """``right^H h`` ``(batch, r)`` of factors; the state itself of matrices."""
        return h if self.right is None else torch.matmul(self.right.mH, h.unsqueeze(-1)).squeeze(-1)


def states(words: Words, ids: Tensor, h_0: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``h_t = M_(w_t) h_(t-1)`` over the rows of a packed sequence, step by step.

    Args:
        words: the vocabulary.
        ids: w ``(sum(sizes),)``.
        h_0: ``(batch, n)``.
        sizes: how many sentences are alive at each step, not increasing.

    Returns:
        All states ``(sum(sizes), n)``, and the last of each sentence ``(batch, n)``.
    """
    outputs: list[Tensor] = []
    ended: list[Tensor] = []
    h = h_0[: sizes[0]]
    for now in ids.split(list(sizes)):
        h = words.at(now) @ alive_of(h, now.size(0), h_0, ended)
        outputs.append(h)
    ended.append(h)
    return torch.cat(outputs), torch.cat(ended[::-1])


class Gradients(NamedTuple):
    """What backward finds; the last two are as the words are."""

    h_0: Tensor
    left: Tensor
    right: Tensor | None


def gradients(
    arriving: tuple[Tensor | None, Tensor | None],
    words: Words,
    ids: Tensor,
    h_0: Tensor,
    output: Tensor,
    sizes: Sequence[int],
    padding: int | None,
) -> Gradients:
    """Gradients of ``h_0`` and the words, of those of both results of :func:`states`; the padding word has none."""
    grad_output, grad_h_n = arriving
    carried = torch.zeros_like(h_0) if grad_h_n is None else grad_h_n.clone()
    before = torch.cat([h for _, h in states_before(output, h_0, sizes, False)])
    delta, inner, outer = torch.empty_like(output), [], []
    parts = [None] * len(sizes) if grad_output is None else grad_output.split(list(sizes))
    steps = zip(parts, ids.split(list(sizes)), before.split(list(sizes)), delta.split(list(sizes)), strict=True)
    for g, now, h, d in reversed(list(steps)):
        alive = carried[: now.size(0)]
        d.copy_(alive if g is None else alive.add_(g))
        here = words.at(now)
        if here.right is not None:
            inner.append(here.inner(h))
            outer.append(here.mH.inner(d))
        alive.copy_(here.mH @ d)
    if words.right is None:
        return Gradients(carried, _by_word(words.left, ids, delta, before, padding), None)
    left = _by_word(words.left, ids, delta, torch.cat(inner[::-1]), padding)
    return Gradients(carried, left, _by_word(words.right, ids, before, torch.cat(outer[::-1]), padding))


def _by_word(like: Tensor, ids: Tensor, a: Tensor, b: Tensor, padding: int | None) -> Tensor:
    """``sum a_t b_t^H`` over the places t of each word, of the shape of ``like``; see Note [Gradients of words]."""
    total, order = torch.zeros_like(like, memory_format=torch.contiguous_format), ids.argsort()
    for word, x, y in _places(ids, a.index_select(0, order), b.index_select(0, order)):
        if word != padding:
            torch.mm(x.mT, y.conj(), out=total[word])
    return total


def _places(ids: Tensor, *rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The words that occur, each with its part of rows that are sorted by words."""
    words, counts = ids.unique(return_counts=True)
    parts = (part.split(counts.tolist()) for part in rows)
    return zip(words.tolist(), *parts, strict=True)

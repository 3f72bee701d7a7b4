"""Products along sentences as a loop, as one node of the graph, or as one operator of torch.

See Note [Gradients of words], and Note [One node for a whole sequence] for why there are three.
"""

from typing import Any

import torch
from torch import Tensor

from ...linalg.transforms import is_transformed
from ...training.factored.once import once_differentiable
from ...training.precision import without_autocast
from .packed import sizes_in_graph, sizes_of
from .products import Words, gradients, states


def word_scan(
    words: Words, ids: Tensor, lengths: Tensor | int, h_0: Tensor, padding: int | None
) -> tuple[Tensor, Tensor]:
    """:func:`states` of sentences, whose gradient leaves out the padding word.

    Args:
        words: the vocabulary.
        ids: words of a packed sequence ``(rows,)``.
        lengths: ``batch_sizes`` ``(t,)`` of it, or of a padded batch the number of time steps.
        h_0: ``(batch, n)``.
        padding: index of the word that gets no gradient, or None.

    Returns:
        All states ``(rows, n)``, and the last of each sentence ``(batch, n)``.
    """
    if torch.compiler.is_exporting() or (torch.compiler.is_compiling() and not is_transformed()):
        return words_operator(*words, ids, h_0, lengths if isinstance(lengths, Tensor) else None, padding)
    sizes = sizes_of(lengths, h_0.size(0))
    if is_transformed():
        return states(_without_gradient_of(words, padding), ids, h_0, sizes)
    return _WordScan.apply(*words, ids, h_0, sizes, padding)


def _without_gradient_of(words: Words, padding: int | None) -> Words:
    """The vocabulary with one word as a constant."""
    if padding is None:
        return words

    def held(parts: Tensor) -> Tensor:
        is_padding = torch.arange(len(parts), device=parts.device) == padding
        return parts.detach().where(is_padding.view(-1, *[1] * (parts.ndim - 1)), parts)

    return Words(held(words.left), None if words.right is None else held(words.right))


class _WordScan(torch.autograd.Function):
    """:func:`states` as one node."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor | None, ids: Tensor, h_0: Tensor, sizes: list[int], padding: int | None
    ) -> tuple[Tensor, Tensor]:
        with without_autocast(h_0.device.type):
            output, h_n = states(Words(left, right), ids, h_0, sizes)
        ctx.save_for_backward(left, right, ids, h_0, output)
        ctx.set_materialize_grads(False)
        ctx.sizes, ctx.padding = sizes, padding
        return output, h_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, saved: tuple[Tensor, ...], *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        left, right, ids, h_0, output = saved
        of = (ids, h_0, output, ctx.sizes, ctx.padding)
        with without_autocast(left.device.type):
            found = gradients((arriving[0], arriving[1]), Words(left, right), *of)
        return found.left, found.right, None, found.h_0, None, None


@torch.library.custom_op("unitary_layers::words", mutates_args=())
def words_operator(
    left: Tensor, right: Tensor | None, ids: Tensor, h_0: Tensor, batch_sizes: Tensor | None, padding: int | None
) -> tuple[Tensor, Tensor]:
    """:func:`word_scan`; the length of the sequence is that of its tensors."""
    with without_autocast(h_0.device.type):
        return states(Words(left, right), ids, h_0, sizes_in_graph(batch_sizes, ids, h_0))


@words_operator.register_fake
def _(left: Tensor, right: Tensor | None, ids: Tensor, h_0: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return h_0.new_empty((ids.size(0), h_0.size(1))), h_0.new_empty(h_0.shape)


@torch.library.custom_op("unitary_layers::words_backward", mutates_args=())
def _words_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    left: Tensor,
    right: Tensor | None,
    ids: Tensor,
    h_0: Tensor,
    output: Tensor,
    batch_sizes: Tensor | None,
    padding: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``h_0``, ``left`` and ``right``; an empty one in the place of a right one that is not."""
    of = (ids, h_0, output, sizes_in_graph(batch_sizes, ids, h_0), padding)
    with without_autocast(left.device.type):
        found = gradients((grad_output, grad_h_n), Words(left, right), *of)
    return found.h_0, found.left, left.new_empty(0) if found.right is None else found.right


@_words_backward.register_fake
def _(
    grad_output: Tensor | None, grad_h_n: Tensor | None, left: Tensor, right: Tensor | None, ids: Tensor, h_0: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    of_right = left.new_empty(0) if right is None else right.new_empty(right.shape)
    return h_0.new_empty(h_0.shape), left.new_empty(left.shape), of_right


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    left, right, ids, h_0, batch_sizes, ctx.padding = inputs
    ctx.save_for_backward(left, right, ids, h_0, output[0], batch_sizes)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_h_0, left, right = _words_backward(grad_output, grad_h_n, *ctx.saved_tensors, ctx.padding)
    return left, None if ctx.saved_tensors[1] is None else right, None, grad_h_0, None, None


words_operator.register_autograd(_backward, setup_context=_keep)

"""Nodes of the graph that cannot be differentiated twice, and say so."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


def once_differentiable(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """A backward ``(ctx, saved, *gradients)`` whose results raise ``RuntimeError`` when they are differentiated.

    torch's decorator of this name sees to that only where a gradient that arrives has a graph, and only for those who
    differentiate by nothing in particular. Where none has, as that of a sum, a second derivative would silently lack
    all that goes through the node. ``saved`` are the saved tensors, which a checkpoint lets nobody unpack twice.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Tensor | None) -> Gradients:
        saved = ctx.saved_tensors
        with torch.no_grad():
            results = backward(ctx, saved, *gradients)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiled graph refuses by itself
            return results
        # What the node has saved leads to its inputs, the leaf to all who ask for no input in particular.
        gates = [*saved, *(g for g in gradients if g is not None), torch.ones((), requires_grad=True)]
        return tuple(None if result is None else _Refusal.apply(result, *gates) for result in results)

    return once


class _Refusal(torch.autograd.Function):
    """The identity, which raises in backward."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *gates: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            'expected first derivatives alone, got a second one: with gradient="factored", and in a recurrent layer '
            "with a fused nonlinearity (tanh, relu, modrelu, identity), no gradient can be differentiated; "
            "torch.func, or a nonlinearity of another class, takes the plain loop"
        )

"""The exponential of a graph's sparse matrix, as one operator with derivatives of its own."""

from typing import Any

import torch
from torch import Tensor

from ...linalg.adjacency import Adjacency, sparse_matrix, spectral_bound
from ...linalg.chebyshev import Product, exponential, series, series_order, turned
from ...linalg.transforms import is_transformed
from ...training.precision import without_autocast

# Note [Backward of an exponential]
# The adjoint of y = exp(i t A) x is exp(-i t A): backward is the same series, run with -t, and keeps y alone, of all
# terms none. The derivative by t is Re <grad, i A y>, one product more. For the gradients of the entries of A the
# recurrence of the terms runs backwards, T_(k-1) = 2 A T_k - T_(k+1), which is as stable as forwards, beside its own
# adjoint, and each step adds the products of both at the entries. No n x n matrix and no array of all features of all
# edges is made.
# It is an operator to torch.compile, which knows no sparse matrices. Under torch.export and torch.func it is its plain
# formula, sums over edges; see Note [Under a transform].


def graph_exponential(graph: Adjacency, x: Tensor, times: Tensor, tol: float, reach: float) -> Tensor:
    """``exp(i t A) x`` for pairs of neighbouring channels.

    Args:
        graph: A, real symmetric, of n nodes.
        x: real ``(..., n, c)``, c even.
        times: t, ``()`` or ``(c / 2,)``.
        tol: largest error in the spectral norm.
        reach: the largest modulus of a time, for transforms, under which no number can be read.

    Raises:
        ValueError: under a transform, for a graph of which no bound of the spectrum is known.
    """
    if x.numel() == 0:
        return x
    if is_transformed():
        factor = max(1.0, graph.bound)
        if not graph.bound:
            raise ValueError(
                "expected a graph whose spectrum is known, as that of normalize=True, or one that was made before, by "
                "normalized_adjacency: under torch.export and torch.func no number can be read"
            )
        graph = graph._replace(values=graph.values / factor)
        return exponential(_sums_of(graph), x, times * factor, series_order(reach * factor, tol))
    flat = x.movedim(-2, 0)
    shape, many = flat.shape, flat.numel() // max(x.size(-2) * x.size(-1), 1)
    times = times.repeat(many) if times.ndim else times
    parts = (graph.starts, graph.columns, graph.values)
    y = _exponential(*parts, flat.reshape(x.size(-2), -1), times, tol, graph.bound)
    return y.reshape(shape).movedim(0, -2)


def _sums_of(graph: Adjacency) -> Product:
    """The products with A as sums over edges."""

    def product(x: Tensor, before: Tensor | None) -> Tensor:
        sent = graph.values.unsqueeze(-1) * x.index_select(-2, graph.columns)
        total = torch.zeros_like(x).index_add(-2, graph.rows, sent)
        return total if before is None else 2 * total - before

    return product


def _products_of(matrix: Tensor, kept: Tensor) -> Product:
    """The products with a sparse matrix, in the place of the term before it unless that is to be kept."""

    def product(x: Tensor, before: Tensor | None) -> Tensor:
        if before is None:
            return matrix @ x
        if before is kept:
            return torch.addmm(before, matrix, x, beta=-1, alpha=2)
        return before.addmm_(matrix, x, beta=-1, alpha=2)

    return product


def _scaled(
    starts: Tensor, columns: Tensor, values: Tensor, times: Tensor, bound: float
) -> tuple[Tensor, Tensor, float]:
    """The matrix and the times with a spectrum within [-1, 1], and the factor; see Note [A bound of the spectrum]."""
    factor = max(1.0, bound or spectral_bound(starts, columns, values))
    return sparse_matrix(starts, columns, values / factor if factor > 1 else values), times * factor, factor


def _order(times: Tensor, tol: float) -> int:
    return series_order(float(times.abs().amax()), tol) if times.numel() else 0


@torch.library.custom_op("unitary_layers::graph_exponential", mutates_args=())
def _exponential(
    starts: Tensor, columns: Tensor, values: Tensor, x: Tensor, times: Tensor, tol: float, bound: float
) -> Tensor:
    """``exp(i t A) x`` of contiguous ``(n, c)``."""
    with without_autocast(x.device.type):
        matrix, times, _ = _scaled(starts, columns, values, times, bound)
        return exponential(_products_of(matrix, x), x, times, _order(times, tol))


@torch.library.custom_op("unitary_layers::graph_product", mutates_args=())
def _product(starts: Tensor, columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """``A x``."""
    with without_autocast(x.device.type):
        return sparse_matrix(starts, columns, values) @ x


@torch.library.custom_op("unitary_layers::graph_exponential_values", mutates_args=())
def _gradient_of_values(
    starts: Tensor, columns: Tensor, values: Tensor, x: Tensor, times: Tensor, tol: float, bound: float, grad: Tensor
) -> Tensor:
    """The gradient of ``exp(i t A) x`` by the entries of A; see Note [Backward of an exponential]."""
    with without_autocast(x.device.type):
        matrix, times, factor = _scaled(starts, columns, values, times, bound)
        order = _order(times, tol)
        product = _products_of(matrix, x)
        found = torch.zeros_like(values)
        if order == 0:
            return found
        before, current = x, product(x, None)
        for _ in range(order - 1):
            before, current = current, product(current, before)
        terms = series(times, order).to(x.dtype)
        terms = terms.repeat_interleave(2, dim=-1) if times.ndim else terms
        grads = (grad, -turned(grad))  # of the cosine and the sine, whose sum has J before it
        later, now = torch.zeros_like(grad), torch.zeros_like(grad)
        for k in range(order, 0, -1):  # current and before are the terms k and k - 1
            later, now = now, torch.addcmul(2 * (matrix @ now) - later, terms[k], grads[k % 2])
            found += (1 if k == 1 else 2) * _at_entries(matrix, now, before)
            before, current = 2 * (matrix @ before) - current, before
        return found / factor


def _at_entries(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The entries of ``left right^T`` where a sparse matrix has some."""
    return torch.sparse.sampled_addmm(matrix, left, right.mT, beta=0.0).values()


@_exponential.register_fake
@_product.register_fake
def _(starts: Tensor, columns: Tensor, values: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@_gradient_of_values.register_fake
def _(starts: Tensor, columns: Tensor, values: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(values)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    starts, columns, values, x, times, *ctx.options = inputs
    ctx.save_for_backward(starts, columns, values, times, output, x if values.requires_grad else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *sparse, times, y, x = ctx.saved_tensors
    grad = grad.contiguous()
    found: list[Tensor | None] = [None] * 7
    if ctx.needs_input_grad[2]:
        found[2] = _gradient_of_values(*sparse, x, times, *ctx.options, grad)
    if ctx.needs_input_grad[3]:
        found[3] = _exponential(*sparse, grad, -times, *ctx.options)
    if ctx.needs_input_grad[4]:
        slopes = (turned(_product(*sparse, y)) * grad).sum(0)
        found[4] = (slopes.unflatten(-1, (-1, 2)).sum(-1) if times.ndim else slopes.sum()).to(times.dtype)
    return tuple(found)


def _keep_matrix(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _backward_of_product(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.needs_input_grad[2]:
        _refuse_second(ctx, grad)
    return None, None, None, _product(*ctx.saved_tensors, grad.contiguous())


def _refuse_second(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError(
        "expected first derivatives by the weights of the edges alone, got a second one; torch.func takes the plain "
        "sums over edges, which have it"
    )


_exponential.register_autograd(_backward, setup_context=_keep)
_product.register_autograd(_backward_of_product, setup_context=_keep_matrix)
_gradient_of_values.register_autograd(_refuse_second)

"""Assertions for users and for our own tests: is this unitary, is that an isometry, what matrix is this layer?

Tolerances are computed, ``c * n * eps`` of the precision at hand, and every message tells the error that was measured.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .linalg import unitarity_error
from .training.weight import unitary_weights


def assert_unitary(subject: Tensor | nn.Module, *, tolerance: float | None = None) -> None:
    """Asserts that a matrix, or each unitary weight of a module tree, satisfies ``|W^H W - I|_F <= tolerance``.

    Args:
        subject: ``(..., m, n)``, where for m != n the shorter side is to be orthonormal; or a module.
        tolerance: Frobenius norm; ``10 (n + 1) eps`` of the subject's precision if None, n the larger side.

    Raises:
        AssertionError: with the name, the error and the tolerance of the first that is not.
        ValueError: for a module without unitary weights.
    """
    __tracebackhide__ = True
    if isinstance(subject, Tensor):
        named = [("matrix", subject.detach())]
    else:
        named = [(weight.name, weight.matrix) for weight in unitary_weights(subject)]
        if not named:
            raise ValueError(f"expected a module with unitary weights, got a {type(subject).__name__} without any")
    for name, matrix in named:
        allowed = 10 * (max(matrix.shape[-2:]) + 1) * torch.finfo(matrix.dtype).eps if tolerance is None else tolerance
        error = max(unitarity_error(matrix).flatten().tolist(), default=0.0)
        if not error <= allowed:
            raise AssertionError(
                f"{name} {tuple(matrix.shape)} is not unitary: |W^H W - I|_F = {error:.2e}, tolerance {allowed:.2e}"
            )


def assert_isometry(
    function: Callable[[Tensor], Tensor],
    input_shape: tuple[int, ...],
    *,
    pairs: int = 4,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    tolerance: float | None = None,
) -> None:
    """Asserts that a function keeps the distance of random Gaussian inputs, ``|f(x) - f(y)| = |x - y|``.

    Args:
        function: maps a batch ``(pairs, *input_shape)`` to ``(pairs, ...)``; an affine one may have a bias.
        input_shape: of one input, without the batch.
        pairs: number of pairs that are tried.
        dtype: real or complex; torch's default one if None.
        device: of the inputs.
        generator: source of the random numbers; torch's default one if None.
        tolerance: of the relative error of the distance; ``10 n eps`` if None, with n the size of an input.

    Raises:
        AssertionError: with the largest relative error and the tolerance.
    """
    __tracebackhide__ = True
    dtype = torch.get_default_dtype() if dtype is None else dtype
    with torch.no_grad():
        x, y = torch.randn(2, pairs, *input_shape, dtype=dtype, device=device, generator=generator)
        before, after = (x - y).flatten(1), (function(x) - function(y)).flatten(1)
        ratio = torch.linalg.vector_norm(after, dim=1) / torch.linalg.vector_norm(before, dim=1)
    allowed = 10 * before.size(1) * torch.finfo(dtype).eps if tolerance is None else tolerance
    error = float((ratio - 1).abs().amax())
    if not error <= allowed:
        raise AssertionError(f"not an isometry: distances change by up to {error:.2e} of them, tolerance {allowed:.2e}")


@torch.no_grad()
def operator_matrix(
    function: Callable[[Tensor], Tensor],
    input_shape: tuple[int, ...],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The dense matrix of a linear layer, by its impulse responses; of an affine one without the bias.

    Args:
        function: maps a batch ``(n, *input_shape)`` to ``(n, *output_shape)``, n the size of one input.
        input_shape: of one input, without the batch.
        dtype: real or complex; torch's default one if None.
        device: of the inputs.

    Returns:
        ``(m, n)``, m the size of one output: the flattened output is this matrix times the flattened input.
    """
    n = torch.Size(input_shape).numel()
    impulses = torch.eye(n, dtype=dtype, device=device).reshape(n, *input_shape)
    responses = function(impulses) - function(torch.zeros_like(impulses))
    return responses.reshape(n, -1).mT.contiguous()

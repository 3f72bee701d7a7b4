"""The functions on tensors, given anything: they work, or refuse in words, and leave their arguments as they were."""

from collections.abc import Callable

import pytest
import torch
from hostile import is_finite, survived
from hypothesis import given
from hypothesis import strategies as st
from strategies import hostile_tensors
from torch import Tensor

from unitary_layers import haar_unitary, low_rank, nearest_unitary, projunn_d, projunn_t, unitarity_error
from unitary_layers.init import INITS
from unitary_layers.linalg import (
    depth_to_space,
    orthogonality_bound,
    orthogonality_penalty,
    space_to_depth,
    support_penalty,
)
from unitary_layers.projunn.sampling import SAMPLERS
from unitary_layers.testing import assert_unitary

UNITARY = {"nearest_unitary": nearest_unitary, **{f"{name}_": fill for name, fill in INITS.items()}}
MEASURES = {
    "unitarity_error": unitarity_error,
    "support_penalty": lambda x: support_penalty(x, 2),
    "orthogonality_bound": orthogonality_bound,
    "orthogonality_penalty": orthogonality_penalty,
}
RESHAPES = {
    "space_to_depth": lambda x: space_to_depth(x, (2, 2)),
    "depth_to_space": lambda x: depth_to_space(x, (2,)),
}
NO_INTEGER = (-1, 0, 4, 10**30, True, 1.0, float("nan"), float("inf"), None, "1", [], {}, 1j)


def functions(table: dict[str, Callable]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("function", table.values(), ids=table)


def copied(x: object) -> object:
    """What a filler may write to."""
    dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_quantized
    return x.detach().clone(memory_format=torch.contiguous_format) if dense else x


@functions(UNITARY)
@given(x=hostile_tensors())
def test_what_comes_out_unitary_is(function, x):
    result = survived("tensors", lambda: function(copied(x)))
    if result is not None and not result.is_meta:
        assert_unitary(result.to(torch.promote_types(result.dtype, torch.float32)), tolerance=tolerance(result))


def tolerance(x: Tensor) -> float:
    """10 (n + 1) eps of the precision that it is stored in."""
    return 10 * (max(x.shape[-2:]) + 1) * torch.finfo(x.dtype).eps


@functions(MEASURES)
@given(x=hostile_tensors())
def test_a_measure_of_what_is_finite_is_a_number(function, x):
    result = survived("tensors", lambda: function(x))
    if result is not None and is_finite(x):
        assert not result.isnan().any()  # the square of 1e38 is infinite, and no error


@functions(RESHAPES)
@given(x=hostile_tensors())
def test_a_reshape_keeps_every_number(function, x):
    result = survived("tensors", lambda: function(x))
    if result is not None:
        assert result.numel() == x.numel()


@pytest.mark.parametrize("sampler", SAMPLERS)
@given(x=hostile_tensors(), rank=st.sampled_from([1, 2, 3]))
def test_a_low_rank_matrix_has_finite_factors(sampler, x, rank):
    result = survived("tensors", lambda: low_rank(x, rank, sampler))
    if result is not None and not x.is_meta:
        assert all(is_finite(factor) and factor.size(-1) == rank for factor in result)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scale", [1e-40, 1e-45])
def test_numbers_below_the_smallest_normal_one_have_finite_factors(sampler, scale):
    for dtype in (torch.float32, torch.complex64):
        x = torch.randn(8, 8, dtype=dtype) * scale
        assert all(is_finite(factor) for factor in low_rank(x, 2, sampler))


@functions({"D": projunn_d, "T": projunn_t})
@given(x=hostile_tensors(), n=st.sampled_from([1, 3, 4]), place=st.sampled_from(["weight", "a", "b", "factors", "all"]))
def test_an_update_of_a_unitary_matrix_is_unitary(function, x, n, place):
    weight, thin = haar_unitary(n, dtype=torch.float32), torch.ones(n, 3)
    arguments = {
        "weight": (x, thin, thin),
        "a": (weight, x, thin),
        "b": (weight, thin, x),
        "factors": (weight, x, x),
        "all": (x, x, x),
    }[place]
    result = survived("tensors", lambda: function(*arguments))
    if result is not None and not result.is_meta:
        assert is_finite(result)
        if place in ("a", "b", "factors"):
            assert_unitary(result)


def test_options_out_of_range_are_refused():
    x = torch.randn(3, 3, 3)
    for value in NO_INTEGER:
        survived("options", lambda value=value: haar_unitary(value))
        survived("options", lambda value=value: haar_unitary(2, batch=value))
        survived("options", lambda value=value: haar_unitary(2, dtype=value))
        survived("options", lambda value=value: haar_unitary(2, device=value if value != 0 else "nowhere"))
        survived("options", lambda value=value: low_rank(x, value))
        survived("options", lambda value=value: low_rank(x, 1, value))
        survived("options", lambda value=value: low_rank(x, 1, generator=value))
        for stride in (value, (value,), (1, value)):
            survived("options", lambda stride=stride: space_to_depth(x, stride))
            survived("options", lambda stride=stride: depth_to_space(x, stride))
            survived("options", lambda stride=stride: support_penalty(x, stride))
    for dtype in (torch.int64, torch.bool, torch.complex32, torch.float8_e4m3fn):
        with pytest.raises(ValueError, match=f"dtype in .*got {dtype}"):
            haar_unitary(3, dtype=dtype)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: unitarity_error(torch.ones(3)), ValueError, r"w of shape \(..., m, n\), got shape \(3,\)"),
        (lambda: unitarity_error([[1.0]]), TypeError, "w to be a tensor, got list"),
        (lambda: nearest_unitary(torch.eye(3).to_sparse()), ValueError, "dense tensor, got .* of layout torch.sparse"),
        (lambda: INITS["haar"](torch.ones(2, 2, dtype=torch.int64)), ValueError, "floating point matrix.*int64"),
        (lambda: low_rank(torch.eye(3).half(), 1), ValueError, "floating point matrix.*float16"),
        (lambda: low_rank(torch.full((3, 3), 3e38), 1), ValueError, r"do not overflow, got numbers up to 3e\+38"),
        (lambda: projunn_d(torch.eye(3), torch.ones(3, 1) * torch.inf, torch.ones(3, 1)), ValueError, "infinity or ov"),
        (lambda: space_to_depth(torch.ones(4), (2,)), ValueError, r"for the stride \(2,\), got shape \(4,\)"),
        (lambda: space_to_depth(torch.ones(4, 4), (0,)), ValueError, r"stride of integers of at least 1, got \(0,\)"),
        (lambda: depth_to_space(torch.ones(3, 4), (2,)), ValueError, "multiples of 2 for the stride .* got 3"),
        (lambda: support_penalty(torch.ones(3, 3), 1), ValueError, r"kernel \(out, in, \*size\), got shape \(3, 3\)"),
    ],
)
def test_a_refusal_tells_what_was_expected_and_what_came(call, error, match):
    with pytest.raises(error, match=match):
        call()

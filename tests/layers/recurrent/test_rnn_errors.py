"""What torch's recurrent layers refuse, ours refuse with the same type of exception, naming expected and got."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from unitary_layers import UnitaryRNN, UnitaryRNNCell

INPUT, HIDDEN, BATCH = 3, 5, 3


@dataclass
class Wrong:
    """A wrong call: ``layer(*sizes, **options)(*inputs())`` raises ``error`` with a message that matches."""

    name: str
    error: type[Exception]
    match: str
    inputs: Callable[[], tuple[Any, ...]] = lambda: (torch.zeros(4, BATCH, INPUT),)
    options: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[Any, ...] = (INPUT, HIDDEN)

    def call(self, layer: type[nn.Module]) -> None:
        layer(*self.sizes, **self.options)(*self.inputs())


def packed(features: int = INPUT) -> PackedSequence:
    return pack_padded_sequence(torch.zeros(4, BATCH, features), [4, 2, 1])


def zeros(*shapes: tuple[int, ...], dtype: torch.dtype | None = None) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.zeros(shape, dtype=dtype) for shape in shapes)


HIDDEN_SIZE = r"Expected hidden size \(1, 3, 5\), got \("
INPUTS = [
    Wrong("1-D input", ValueError, "input to be 2D or 3D, got 1D", zeros((3,))),
    Wrong("4-D input", ValueError, "input to be 2D or 3D, got 4D", zeros((2, 4, 3, 3))),
    Wrong("input size", RuntimeError, "Expected 3, got 4", zeros((4, 3, 4))),
    Wrong("input size, unbatched", RuntimeError, "Expected 3, got 4", zeros((4, 4))),
    Wrong("input size, packed", RuntimeError, "Expected 3, got 4", lambda: (packed(4),)),
    Wrong("2-D hx of a batch", RuntimeError, "batched 3-D.*3-D but got 2-D", zeros((4, 3, 3), (3, 5))),
    Wrong("3-D hx of no batch", RuntimeError, "unbatched 2-D.*2-D but got 3-D", zeros((4, 3), (1, 1, 5))),
    Wrong("batch of hx", RuntimeError, HIDDEN_SIZE + r"1, 2, 5\)", zeros((4, 3, 3), (1, 2, 5))),
    Wrong("layers of hx", RuntimeError, HIDDEN_SIZE + r"2, 3, 5\)", zeros((4, 3, 3), (2, 3, 5))),
    Wrong("size of hx", RuntimeError, HIDDEN_SIZE + r"1, 3, 6\)", zeros((4, 3, 3), (1, 3, 6))),
    Wrong("size of hx, unbatched", RuntimeError, r"size \(1, 1, 5\), got \(1, 1, 6\)", zeros((4, 3), (1, 6))),
    Wrong("batch of hx, packed", RuntimeError, HIDDEN_SIZE, lambda: (packed(), torch.zeros(1, 2, 5))),
    Wrong("layers of hx, packed", RuntimeError, HIDDEN_SIZE, lambda: (packed(), torch.zeros(2, 3, 5))),
    Wrong("2-D hx, packed", RuntimeError, HIDDEN_SIZE, lambda: (packed(), torch.zeros(3, 5))),
    Wrong(
        "directions of hx",
        RuntimeError,
        r"\(4, 3, 5\), got \(2, 3, 5\)",
        zeros((4, 3, 3), (2, 3, 5)),
        {"num_layers": 2, "bidirectional": True},
    ),
    Wrong("no steps", RuntimeError, "length to be larger than 0", zeros((0, 3, 3))),
    Wrong("no steps, unbatched", RuntimeError, "length to be larger than 0", zeros((0, 3))),
    Wrong("no steps, batch first", RuntimeError, "larger than 0", zeros((3, 0, 3)), {"batch_first": True}),
    Wrong("float64 input", ValueError, "float32, got torch.float64", zeros((4, 3, 3), dtype=torch.float64)),
    Wrong("integer input", ValueError, "float32, got torch.int64", zeros((4, 3, 3), dtype=torch.int64)),
    Wrong("complex input", ValueError, "float32, got torch.complex64", zeros((4, 3, 3), dtype=torch.complex64)),
    Wrong(
        "float64 hx",
        RuntimeError,
        "hx of the input's dtype torch.float32, got torch.float64",
        lambda: (torch.zeros(4, BATCH, INPUT), torch.zeros(1, BATCH, HIDDEN, dtype=torch.float64)),
    ),
]


def option(error: type[Exception], match: str, **options: Any) -> Wrong:
    return Wrong(", ".join(f"{k}={v!r}" for k, v in options.items()), error, match, options=options)


OPTIONS = [
    *(option(ValueError, rf"range \[0, 1\].*got {p!r}", dropout=p, num_layers=2) for p in (-0.1, 1.5, math.nan, True)),
    *(option(ValueError, f"greater than zero, got {n}", num_layers=n) for n in (0, -1)),
    *(option(TypeError, f"type int, got: {type(n).__name__}", num_layers=n) for n in (1.5, "2", None, True)),
    *(option(TypeError, f"bias.*bool, got: {type(b).__name__}", bias=b) for b in (1, "no", None)),
    *(option(TypeError, f"batch_first.*bool, got: {type(b).__name__}", batch_first=b) for b in (1, "no", None)),
    *(option(TypeError, f"bidirectional.*bool, got: {type(b).__name__}", bidirectional=b) for b in (1, "no", None)),
    *(option(ValueError, f"one of.*got {f!r}", nonlinearity=f) for f in ("gelu", "TANH", None, 3)),
]
SIZES = [
    Wrong("float input_size", TypeError, "input_size should be of type int, got: float", sizes=(3.0, 5)),
    Wrong("float hidden_size", TypeError, "hidden_size should be of type int, got: float", sizes=(3, 5.0)),
    Wrong("input_size of a string", TypeError, "input_size.*int, got: str", sizes=("3", 5)),
    Wrong("no hidden_size", TypeError, "hidden_size", sizes=(3,)),
]
SIZE_VALUES = [
    Wrong("input_size=0", ValueError, "input_size must be greater than zero, got 0", sizes=(0, 5)),
    Wrong("hidden_size=0", ValueError, "hidden_size must be greater than zero, got 0", sizes=(3, 0)),
    Wrong("hidden_size=-1", ValueError, "hidden_size must be greater than zero, got -1", sizes=(3, -1)),
]
CELL = [
    Wrong("0-D input", ValueError, "input to be 1D or 2D, got 0D", zeros(())),
    Wrong("3-D input", ValueError, "input to be 1D or 2D, got 3D", zeros((1, 3, 3))),
    Wrong("3-D hidden", ValueError, "hidden to be 1D or 2D, got 3D", zeros((3, 3), (1, 3, 5))),
    Wrong("input size", RuntimeError, "got 4 expected 3", zeros((3, 4))),
    Wrong("input size, unbatched", RuntimeError, "got 4 expected 3", zeros((4,))),
    Wrong("hidden size", RuntimeError, "got 6, expected 5", zeros((3, 3), (3, 6))),
    Wrong("hidden size, unbatched", RuntimeError, "got 6, expected 5", zeros((3,), (6,))),
    Wrong("hidden batch", RuntimeError, "batch size 3 doesn't match hidden.* batch size 2", zeros((3, 3), (2, 5))),
    Wrong("hidden batch of one", RuntimeError, "batch size 3 doesn't match hidden", zeros((3, 3), (1, 5))),
    Wrong("2-D hidden of no batch", RuntimeError, "Expected hidden of 1D.*got 2D", zeros((3,), (1, 5))),
    Wrong("1-D hidden of a batch", RuntimeError, "Expected hidden of 2D.*got 1D", zeros((1, 3), (5,))),
    Wrong("float64 input", RuntimeError, "input.*float32, got torch.float64", zeros((3, 3), dtype=torch.float64)),
    Wrong("integer input", RuntimeError, "input.*float32, got torch.int64", zeros((3, 3), dtype=torch.int64)),
    Wrong(
        "float64 hidden",
        RuntimeError,
        "hidden.*float32, got torch.float64",
        lambda: (torch.zeros(BATCH, INPUT), torch.zeros(BATCH, HIDDEN, dtype=torch.float64)),
    ),
]


def same_refusal(wrong: Wrong, ours: type[nn.Module], theirs: type[nn.Module]) -> None:
    with pytest.raises(wrong.error) as refused:
        wrong.call(theirs)
    with pytest.raises(wrong.error, match=wrong.match) as ours_refused:
        wrong.call(ours)
    assert type(ours_refused.value) is type(refused.value)


@pytest.mark.parametrize("wrong", [*INPUTS, *OPTIONS, *SIZES, *SIZE_VALUES], ids=lambda w: w.name)
def test_rnn_refuses_what_torchs_refuses(wrong):
    same_refusal(wrong, UnitaryRNN, nn.RNN)


@pytest.mark.parametrize("wrong", [*CELL, *SIZES], ids=lambda w: w.name)
def test_cell_refuses_what_torchs_refuses(wrong):
    same_refusal(wrong, UnitaryRNNCell, nn.RNNCell)


@pytest.mark.parametrize("layer", [UnitaryRNN, UnitaryRNNCell])
def test_what_we_refuse_earlier_or_beyond_torch(layer):
    with pytest.raises(ValueError, match=r"one of \('tanh'.*got 'gelu'"):  # torch's cell notices in forward
        layer(3, 5, nonlinearity="gelu")
    with pytest.raises(ValueError, match="of complex numbers, got 'relu'"):
        layer(3, 5, nonlinearity="relu", dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"floating point dtype, got torch.int32"):
        layer(3, 5, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"init to be a function or one of .* got 'orthogonal'"):
        layer(3, 5, init="orthogonal")
    with pytest.raises(ValueError, match=r"update to be an UpdateRule, such as .* got 'T'"):
        layer(3, 5, update="T")
    with pytest.raises(TypeError, match="positional"):
        layer(*range(12))


@pytest.mark.parametrize("wrong", SIZE_VALUES, ids=lambda w: w.name)
def test_cell_refuses_sizes_below_one(wrong):
    with pytest.raises(wrong.error, match=wrong.match):
        wrong.call(UnitaryRNNCell)


@pytest.mark.parametrize("layer", [UnitaryRNN, UnitaryRNNCell])
def test_under_autocast_the_state_may_be_of_another_dtype(layer):
    shape = (2, BATCH) if layer is UnitaryRNN else (BATCH,)
    x, h = torch.zeros(*shape, INPUT), torch.zeros(1, BATCH, HIDDEN, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(INPUT, HIDDEN)(x, h if layer is UnitaryRNN else h[0])

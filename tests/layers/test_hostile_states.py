"""State dicts with one wrong entry: loaded and unitary, or refused with every parameter and buffer as it was."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from entries import ENTRIES, same_tensors, snapshot, step
from hostile import SPOILS, one_spoilt, survived
from strategies import LAYOUTS, OBJECTS, STORED, laid_out
from torch import Tensor

from unitary_layers import UnitaryLinear, UpdateRule
from unitary_layers.testing import assert_unitary
from unitary_layers.training.memory import Memory

RULE = UpdateRule(sampler="power", rank=2, lr=0.3, momentum=0.9)  # with all the state there is
CASES = [("linear-complex", False), ("linear", True), ("cell-factored", False)]


def wrong(tensor: Tensor) -> Iterator[object]:
    """What a checkpoint may hold in the place of a tensor."""
    yield from (OBJECTS[0], *OBJECTS[2:8], *OBJECTS[9:])
    yield from (torch.zeros(3), tensor[None], tensor.new_zeros(0), torch.zeros_like(tensor), -tensor - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from (tensor.to(dtype) for dtype in STORED)
    yield from (laid_out(tensor.float(), layout) for layout in LAYOUTS)
    for value in SPOILS:
        yield torch.full_like(tensor, value, dtype=torch.float32)
        yield one_spoilt(tensor.float(), 1, value)


@pytest.mark.parametrize(("name", "assign"), CASES)
def test_a_wrong_entry_is_refused_or_the_layer_is_unitary_and_trains(name, assign):
    entry = next(entry for entry in ENTRIES if entry.name == name)
    module = entry.make(update=RULE)
    step(module, entry.input())
    start, loadable = snapshot(module), 0
    for key in start:
        for value in wrong(start[key]):
            state = start | {key: value}
            loaded = survived(
                "states", lambda m=module, s=state: m.load_state_dict(s, assign=assign) and "loaded", module
            )
            if loaded is None:
                continue
            loadable += 1
            if not any(tensor.is_meta for tensor in module.state_dict().values()):
                assert_unitary(module)
                if key.endswith(("_count", "_previous", *Memory._fields)):
                    survived("states", lambda m=module: step(m, entry.input()))
                    assert_unitary(module)
            module = entry.make(update=RULE)
            module.load_state_dict(start)
    assert loadable


def test_missing_and_unknown_keys_leave_every_tensor_as_it_was():
    module = UnitaryLinear(4, 4, update=RULE)
    start = snapshot(module)
    for state in (
        {},
        {"weight": None},
        start | {"more": torch.ones(2)},
        {k: v for k, v in start.items() if k != "weight"},
    ):
        assert survived("states", lambda s=state: module.load_state_dict(s), module) is None
    for state in (None, [], "x", 3, {"weight": {"weight": {}}}, {"": None}):
        assert survived("states", lambda s=state: module.load_state_dict(s), module) is None
    assert same_tensors(snapshot(module), start)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        (
            "weight",
            torch.eye(4).to_sparse(),
            r"dense real unitary weight 'weight', got .* of layout torch.sp",
        ),
        ("weight_count", torch.tensor(-3), r"buffer 'weight_count' of at least 0, got -3; it was not loaded"),
        ("weight_previous", torch.full((4, 2), torch.nan), r"finite buffer 'weight_previous', got NaN or infinity"),
    ],
)
def test_a_refusal_names_the_entry(key, value, match):
    module = UnitaryLinear(4, 4, update=RULE)
    with pytest.raises(RuntimeError, match=match):
        module.load_state_dict(snapshot(module) | {key: value})


def test_a_weight_assigned_in_double_precision_is_unitary_in_it():
    module, source = UnitaryLinear(6, 6, dtype=torch.float64), UnitaryLinear(6, 6)
    state = {k: v.double() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    with pytest.warns(UserWarning, match="is not unitary"):
        module.load_state_dict(state, assign=True)
    assert module.weight.dtype == torch.float64
    assert_unitary(module)

"""Layers that share some of their weights: what each does afterwards, and which of them still share."""

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor, nn

from unitary_layers import OrthogonalConv2d, UnitaryLinear, convert, revert
from unitary_layers.testing import assert_unitary

N = 6


def conv(kernel_size: int | tuple[int, int] | None = 3, **options) -> OrthogonalConv2d:
    return OrthogonalConv2d(4, 8, kernel_size, bias=False, **options)


# Pairs of layers, and the names of the weights that the second has from the first.
SHARED = {
    "the mixing": (conv, conv, ["weight"]),
    "the shifts": (conv, conv, ["shifts"]),
    "the mixing of other kernels": (conv, lambda: conv(1), ["weight"]),
    "all, of other kernels": (lambda: conv((5, 1)), lambda: conv((1, 5)), ["weight", "shifts"]),
    "all, of other strides": (lambda: conv(stride=(1, 2)), lambda: conv(stride=(2, 1)), ["weight", "shifts"]),
    "some bins": (lambda: conv(None, input_size=4), lambda: conv(None, input_size=4), ["weight"]),
    "the other bins": (lambda: conv(None, input_size=4), lambda: conv(None, input_size=4), ["weight_pairs"]),
}


@pytest.mark.parametrize("case", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("order", [1, -1])
def test_layers_that_share_a_part_become_layers_of_their_own(case, order):
    *makers, names = case
    layers = [make() for make in makers]
    for name in names:
        setattr(layers[1], name, getattr(layers[0], name))
    model, x = nn.ModuleList(layers[::order]), torch.randn(2, 4, 4, 4)
    expected = [layer(x) for layer in model]
    revert(model)
    for layer, y in zip(model, expected, strict=True):
        assert tuple(layer.weight.shape[2:]) == layer.kernel_size
        assert_rounding(layer(x), y, n=100)
    assert model[0].weight is not model[1].weight


@pytest.mark.parametrize("options", [{"kernel_size": 3}, {"input_size": 4}], ids=str)
def test_layers_that_share_all_stay_tied(options):
    a, b = (OrthogonalConv2d(4, 4, bias=False, **options) for _ in range(2))
    for name in list(a._unitary):
        setattr(b, name, getattr(a, name))
    model, x = nn.Sequential(a, b), torch.randn(2, 4, 4, 4)
    y = model(x)
    revert(model)
    assert model[0].weight is model[1].weight
    assert_rounding(model(x), y, n=100)


def test_a_tie_of_other_strides_is_one_of_the_mixing_alone():
    model = nn.Sequential(*(nn.Conv2d(2, 8, 5, stride, 2, bias=False) for stride in ((1, 4), (2, 2))))
    model[1].weight = model[0].weight
    convert(model, conv="isometry")
    assert model[0].weight is model[1].weight
    assert [len(layer.shifts) for layer in model] == [5, 6]


class Buffer(nn.Module):
    """A module that keeps a tensor without training it."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", x)


# What stays as it is, and the part of its memory that a linear layer has for its weight.
STAYING = {
    "a layer": (lambda: nn.Linear(N, N), lambda a: a.weight.data),
    "an embedding": (lambda: nn.Embedding(N, N), lambda a: a.weight.data),
    "some rows": (lambda: nn.Embedding(3 * N, N), lambda a: a.weight.data[2 : 2 + N]),
    "turned": (lambda: nn.Linear(N, N), lambda a: a.weight.data.mT),
    "a buffer": (lambda: Buffer(torch.randn(N, N)), lambda a: a.kept),
}


@pytest.mark.parametrize("case", STAYING.values(), ids=STAYING)
@pytest.mark.parametrize("options", [{}, {"start": "init"}], ids=str)
def test_memory_that_is_shared_with_what_stays_is_not_written(case, options):
    make, part = case
    a, b = make(), nn.Linear(N, N)
    b.weight = nn.Parameter(part(a))
    model = nn.ModuleDict({"a": a, "b": b, "c": nn.Linear(N, N)})
    before = {name: x.clone() for name, x in model.state_dict().items() if not name.startswith("c")}
    report = convert(model, include=["b", "c"], **options)
    notes = {row.module: row.note for row in report}
    assert notes["b"] == "it shares memory of its weight with 'a', which stays as it is"
    assert [row.module for row in report.converted] == ["c"]
    assert all(torch.equal(model.state_dict()[name], x) for name, x in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("options", [{}, {"start": "init"}], ids=str)
def test_layers_that_share_memory_become_unitary_together(dtype, options):
    model = nn.Sequential(*(nn.Linear(N, N, bias=False, dtype=dtype) for _ in range(2)))
    model[1].weight.data = model[0].weight.data
    report = convert(model, **options)
    assert len(report.converted) == 2
    assert model[0].weight is not model[1].weight
    assert model[0].weight.data_ptr() == model[1].weight.data_ptr()
    assert_unitary(model)


def test_layers_that_hold_other_rows_of_the_same_memory_stay():
    rows, model = torch.randn(N + 1, N), nn.Sequential(*(nn.Linear(N, N) for _ in range(2)))
    model[0].weight.data, model[1].weight.data = rows[:N], rows[1:]
    before = rows.clone()
    assert [row.note for row in convert(model)] == [
        f"it shares memory of its weight with '{other}', which stays as it is" for other in (1, 0)
    ]
    assert torch.equal(rows, before)


def test_neighbours_in_one_piece_of_memory_are_not_tied():
    flat, model = torch.randn(3, N, N), nn.Sequential(*(nn.Linear(N, N) for _ in range(3)))
    for layer, part in zip(model, flat, strict=True):
        layer.weight.data = part
    before = flat.clone()
    assert len(convert(model, exclude="1").converted) == 2
    assert torch.equal(flat[1], before[1])
    assert torch.equal(flat[0], model[0].weight)  # which is written in place


def test_memory_that_two_layers_round_otherwise_stays():
    model, x = nn.Sequential(*(UnitaryLinear(N, N, weight_bits=bits) for bits in (4, 2))), torch.randn(3, N)
    model[1].weight.data = model[0].weight.data
    y = model(x)
    assert [row.note for row in revert(model)] == [
        f"it shares memory of its weight with '{other}', which does not round it alike" for other in (1, 0)
    ]
    assert_rounding(model(x), y, n=100)

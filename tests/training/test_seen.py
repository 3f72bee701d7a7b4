"""What is noticed of writes that torch does not count: whole rows and whole columns, of whatever is stored."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from unitary_layers import OrthogonalConv1d, OrthogonalConv2d, StiefelConv1d, StiefelConv2d, UnitaryLinear, UpdateRule
from unitary_layers.training.weight import Seen, UnitaryWeight

SHAPES = {  # stored, and those of the matrices as they lie in memory, and whether of pairs
    **{str(s): (s, s, False) for s in ((2, 2), (48, 48), (16, 48), (48, 16), (1, 5), (5, 1), (3, 12, 12))},
    **{f"{n} rows of two": ((2, n, 2), (2, n, 2), False) for n in (2, 3, 4, 5, 7, 8)},
    **{f"{n} of pairs": ((n, n, 2), (n, n, 2), True) for n in (1, 2, 3, 5, 6, 12)},
    "two of pairs": ((3, 4, 2, 2), (3, 4, 2, 2), True),
    "kernels": ((8, 4, 3, 3), (1, 8, 36), False),
    "few wide kernels": ((2, 8, 5, 5), (1, 2, 200), False),
    "grouped kernels": ((8, 5, 4, 2), (2, 4, 40), False),
    "long kernels": ((6, 4, 5), (1, 6, 20), False),
    "kernels of two taps": ((5, 3, 2), (1, 5, 6), False),
    "kernels of volumes": ((4, 2, 3, 3, 3), (1, 4, 54), False),
    "kernels of pairs": ((6, 2, 3, 5, 2), (1, 6, 30, 2), True),
}


def places_of(matrix: torch.Tensor):
    """Each row and each column of complex or real matrices ``(..., m, n)``, of each matrix alone."""
    flat = matrix.reshape(-1, *matrix.shape[-2:])  # a view
    for single in flat:
        yield from single.unbind(0)
        yield from single.unbind(1)


def check(weight: UnitaryWeight) -> None:
    places = list(places_of(weight.as_matrix(weight.parameter.data)))
    for place in places:
        weight.note()
        assert weight.seen.is_of(weight.parameter)
        place += 1.0  # of a complex number the real part
        assert weight.seen.is_counted(weight.parameter)
        assert weight.seen.is_overlooked(weight.parameter)
        assert not weight.seen.is_of(weight.parameter)


@pytest.mark.parametrize(("shape", "unfolded", "is_pairs"), SHAPES.values(), ids=SHAPES)
def test_what_writes_a_row_or_a_column_without_being_counted_is_seen(shape, unfolded, is_pairs):
    parameter, unfolded = nn.Parameter(torch.randn(shape)), torch.Size(unfolded[:-1] if is_pairs else unfolded)
    parts = {"unfolded": None if unfolded == torch.Size(shape[:-1] if is_pairs else shape) else unfolded}
    check(UnitaryWeight("w", parameter, is_pairs, UpdateRule(), torch.zeros(()), seen=Seen(), **parts))


MAKERS = {
    "local": lambda n: OrthogonalConv2d(n, n, 3),
    "local, grouped": lambda n: OrthogonalConv1d(2 * n, 2 * n, 2, groups=2),
    "full": lambda n: OrthogonalConv2d(n, n, input_size=3),
    "kernel": lambda n: StiefelConv2d(n, 2, 3),
    "complex kernel": lambda n: StiefelConv1d(2, n, 2, dtype=torch.complex64),
    "linear": lambda n: UnitaryLinear(n, 2),
    "complex": lambda n: UnitaryLinear(2, n, dtype=torch.complex64),
}


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("kind", MAKERS)
def test_each_row_and_column_of_a_layer_is_seen(kind, n):
    for weight in MAKERS[kind](n).own_unitary_weights():
        check(weight)


def test_a_write_is_repaired_in_training():
    layer = OrthogonalConv2d(4, 4, 3, bias=False)
    layer.shifts.data[0, 2] *= 5
    x = torch.randn(1, 4, 6, 6)
    with pytest.warns(UserWarning, match="the unitary weight 'shifts'"):
        y = layer(x)
    assert float(y.detach().norm() / x.norm()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (64, 32, 3, 3), (64, 2, 64, 2)])
def test_few_entries_are_summed(shape):
    parameter, rows, columns = torch.zeros(shape), shape[0], torch.Size(shape[1:]).numel()
    weight = UnitaryWeight(
        "w", nn.Parameter(parameter), False, UpdateRule(), torch.zeros(()), unfolded=torch.Size([1, rows, columns])
    )
    weight.note()
    assert len(range(0, parameter.numel(), weight.seen.every)) <= 1.2 * max(rows, columns)


def test_off_the_cpu_no_forward_waits_for_the_sum(monkeypatch):
    parameter, seen = nn.Parameter(torch.randn(4, 4)), Seen()
    seen.note(parameter)
    assert seen.is_of_in_passing(parameter)
    elsewhere = SimpleNamespace(
        is_cpu=False, is_inference=lambda: False, _version=parameter._version, data_ptr=parameter.data_ptr
    )
    monkeypatch.setattr(Seen, "is_overlooked", lambda *_: pytest.fail("the host would wait"))
    assert seen.is_of_in_passing(elsewhere)
    elsewhere._version += 1
    assert not seen.is_of_in_passing(elsewhere)

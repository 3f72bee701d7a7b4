"""The state space layer in graphs: of any length, with no loop in them."""

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor

from unitary_layers import UnitarySSM

N, BATCH = 5, 3


def joined(results: tuple[Tensor, Tensor]) -> Tensor:
    output, h_n = results
    return torch.cat([output.flatten(), torch.view_as_real(h_n).flatten()])


@pytest.mark.parametrize(("features", "options"), [(1, {}), (1, {"return_sequence": False}), (6, {"stride": 3})])
def test_an_export_takes_sequences_of_any_length(features, options):
    ssm, x = UnitarySSM(features, N, **options), torch.randn(40, BATCH, features)
    time = torch.export.Dim("time", min=6, max=100_000)
    program = torch.export.export(ssm, (x,), dynamic_shapes=({0: time},))
    assert len(program.graph.nodes) < 150
    for steps in (7, 40, 300):
        x = torch.randn(steps, BATCH, features)
        assert_rounding(joined(program.module()(x)), joined(ssm(x)), n=steps)


def test_a_long_sequence_is_not_unrolled():
    """200 times as many steps are two levels of chunks more."""
    ssm = UnitarySSM(6, N)
    short, long = (torch.export.export(ssm, (torch.zeros(steps, 1, 6),)) for steps in (40, 8000))
    assert len(long.graph.nodes) < 3 * len(short.graph.nodes) < 600

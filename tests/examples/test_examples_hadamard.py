"""The example of Hadamard recurrences: its table, what it counts, and a run that goes on where it was stopped."""

import csv
from pathlib import Path

import hadamard
import pytest
import torch
from torch import Tensor


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_counts_what_is_stored_and_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    line = ["--quick", "--epochs", "1", "--networks", "two stages", "float, frozen", "--log-every", "2"]
    hadamard.main([*line, "--tasks", "pixels", "--out", str(tmp_path / "whole")])
    rows = table(tmp_path / "whole" / "hadamard.csv")
    assert [(row["network"], int(row["bits"])) for row in rows] == [
        (network, bits) for network in ("two stages", "float, frozen") for bits in (32, 8, 4)
    ]
    # width 16: one input and ten outputs a unit, ten biases; two signs a unit, or 16 x 16 numbers
    kilobytes = [(16 * 11 * bits + 32 * 10 + rest) / 8000 for rest in (32, 32 * 256) for bits in (32, 8, 4)]
    assert [float(row["kilobytes"]) for row in rows] == [round(value, 2) for value in kilobytes]
    assert (tmp_path / "whole" / "hadamard.png").read_bytes().startswith(b"\x89PNG")

    step = torch.optim.Adam.step
    count: list[int] = []

    def stopping(self: torch.optim.Adam, *rest: object) -> object:
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return step(self, *rest)

    line += ["--tasks", "pixels", "--out", str(tmp_path / "parts"), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            hadamard.main(line)
    hadamard.main(line)
    without = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert [
        {k: v for k, v in row.items() if k != "seconds"} for row in table(tmp_path / "parts/hadamard.csv")
    ] == without


@pytest.mark.parametrize("bits", [4, 8])
def test_a_rounded_weight_has_few_values_and_is_nearer_than_one_that_keeps_its_largest(bits: int):
    weight: Tensor = torch.randn(40, 50)
    found, most = hadamard.rounded(weight, bits), 2 ** (bits - 1) - 1
    assert found.unique().numel() <= 2 * most + 1
    scale = weight.abs().max() / most
    assert (found - weight).norm() <= (torch.round(weight / scale) * scale - weight).norm()
    assert hadamard.rounded(weight, 32) is weight

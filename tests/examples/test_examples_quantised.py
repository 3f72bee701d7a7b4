"""The tables of rounded weights: what runs they hold, and that integers say what the rounded weights say."""

import csv
from pathlib import Path

import pytest
import quantised
import torch
from common.models import SequenceModel

TINY = " --width 6 --batch-size 4 --delay 3 --steps 2"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_runs_are_in_the_table_and_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_curves: None
) -> None:
    recipe = quantised.RECIPES["copying"]
    monkeypatch.setitem(quantised.RECIPES, "copying", recipe._replace(options=recipe.options + TINY))
    monkeypatch.setitem(quantised.QUICK, "copying", "")
    command = ["--quick", "--tasks", "copying", "--bits", "0", "3", "--scales", "row", "mse", "--out", str(tmp_path)]
    quantised.main(command)
    table = rows_of(tmp_path / "quantised.csv")
    assert [row["weights"] for row in table] == ["float32", "3 bits, row", "3 bits, mse"]
    assert [row["kilobytes"] for row in table] == ["0.1", "0.0", "0.0"]  # 36 numbers; 36 codes and 6 scales, or one
    assert [bool(row["integer_accuracy"]) for row in table] == [False, True, True]
    assert all(float(row["unitarity_error"]) < 1e-5 for row in table)
    errors = rows_of(tmp_path / "quantised_errors.csv")
    assert len(errors) == len(quantised.BITS) * len(quantised.SCALES)
    assert all(float(row["growth_henaff"]) == 1 for row in errors if row["scale"] == "row")
    assert len(rows_of(tmp_path / "quantised_steps.csv")) == 2
    quantised.main([*command[:4], "3", "--out", str(tmp_path)])  # which goes on at the last step
    assert [row | {"seconds": ""} for row in rows_of(tmp_path / "quantised.csv")] == [table[1] | {"seconds": ""}]


def test_integers_say_what_the_rounded_weights_say() -> None:
    torch.manual_seed(0)
    model = SequenceModel("unitary", 2, 32, 3, True, quantised={"weight_bits": 4, "weight_scale": "row"})
    inputs = torch.randn(6, 5, 2)
    with torch.no_grad():
        expected = model(inputs)
    error = (quantised.integer_outputs(model, inputs) - expected).norm() / expected.norm()
    assert 0 < error < 6 * 2**-15  # that of rounding the states to 15 bits, at each of six steps

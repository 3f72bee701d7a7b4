"""The drift example: all cases of a few steps, what it writes, and the steps of the others' formulas."""

import csv
from pathlib import Path

import drift
import pytest
import torch
from common import walks

PNG = b"\x89PNG\r\n\x1a\n"


def test_drift_writes_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "COST_SIZES", (8,))
    drift.main(["--steps", "20", "--out", str(tmp_path)])
    drift.main(["--cases", "--out", str(tmp_path)])
    with (tmp_path / "drift.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["case"], row["direction"]) for row in rows} == {(c, d) for c in drift.CASES for d in drift.DIRECTIONS}
    assert {row["step"] for row in rows if row["case"] == "T1"} == {"1", "2", "3", "5", "7", "10", "20"}
    assert {row["step"] for row in rows if row["case"] == "QR"} == {"1", "2"}
    ours = [float(row["error"]) for row in rows if row["case"] not in ("QR", "Cayley", "exp", "POGO")]
    assert max(ours) < drift.BOUND
    assert (tmp_path / "drift.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    assert "T1           20 steps: at most " in printed
    assert "n = 8: a step " in printed


def test_no_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--steps must be at least 1, got 0"):
        drift.main(["--steps", "0", "--out", str(tmp_path)])


def test_looks_are_before_each_retraction() -> None:
    numbers = [number for number, _ in drift.looks(5000)]
    assert {999, 1999, 2999, 3999, 4999} <= set(numbers)
    assert not set(numbers) & {1000, 2000, 3000, 4000}
    assert numbers[-1] == 5000
    assert [number for number, is_row in drift.looks(5000) if is_row][-3:] == [1999, 2999, 4999]


@pytest.mark.parametrize("formula", [walks.qr, walks.cayley, walks.exponential, walks.pogo], ids=lambda f: f.__name__)
def test_the_formulas_of_others_follow_the_geodesic(formula) -> None:
    w, a = walks.haar_unitary(6, dtype=torch.float64), torch.randn(6, 6, dtype=torch.float64)
    skew = (a - a.mT) / 2
    for t in (1e-2, 1e-3):
        error = torch.linalg.matrix_norm(formula(w, t * skew) - w @ torch.linalg.matrix_exp(t * skew))
        assert error <= torch.linalg.matrix_norm(t * skew) ** 2
    twice = formula(formula(w, 1e-2 * skew), 1e-2 * skew)
    assert torch.linalg.matrix_norm(twice.mT @ twice - torch.eye(6)) <= torch.linalg.matrix_norm(1e-2 * skew) ** 4

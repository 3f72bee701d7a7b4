"""Every curve of a picture can be seen, and a legend lists what is drawn: of the shared helper and of each redraw."""

import json
import math
import shutil
import sys
from pathlib import Path

import depth
import drift
import hadamard
import numpy as np
import pytest
import report
from common.curves import draw_task
from common.drawing import Curve, add_legend, draw_curves
from common.log import COLUMNS
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "benchmarks"))

import run
import wide

RESULTS = Path(__file__).parents[2] / "results"
PNG = b"\x89PNG\r\n\x1a\n"
LINE = [(float(x), 0.5) for x in range(60)]
FALLING = [(float(x), 10.0**-x) for x in range(8)]
SETS = {
    "three on one another": [LINE, LINE, LINE],
    "two that end early": [LINE, LINE[:20], LINE[:9]],
    "a single point": [LINE, LINE[:1]],
    "single points on a line": [LINE, LINE[5:6], LINE[30:31]],
    "all at zero": [LINE, [(x, 0.0) for x, _ in LINE]],
    "two at zero beside one that falls": [FALLING, [(x, 0.0) for x, _ in FALLING], [(x, 0.0) for x, _ in FALLING]],
    "holes": [LINE, [(x, y if x % 3 else math.nan) for x, y in LINE]],
    "more than colours of their own": [[(x, y + i / 20) for x, y in LINE] for i in range(10)],
}


def pixels(figure: Figure, colour: str) -> int:
    """How many pixels of a picture have a colour."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    wanted = np.array([round(255 * part) for part in to_rgb(colour)])
    return int((np.abs(picture - wanted).max(axis=-1) < 40).sum())


def new_axes() -> Axes:
    return Figure(figsize=(6, 4), dpi=100, layout="constrained").subplots()


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
@pytest.mark.parametrize("name", SETS)
def test_every_curve_can_be_seen(name: str, log: bool) -> None:
    axes = new_axes()
    draw_curves(axes, [Curve(f"{i}", points) for i, points in enumerate(SETS[name])], log=log)
    assert len(axes.get_legend_handles_labels()[1]) == len(SETS[name])
    for line in axes.get_lines():
        assert pixels(axes.figure, line.get_color()) >= 10, line.get_label()
        assert line.get_markevery()[-1] == len(line.get_xdata()) - 1


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_a_legend_lists_what_is_drawn(log: bool) -> None:
    axes = new_axes()
    nothing = [Curve("none", []), Curve("not finite", [(1.0, math.nan), (2.0, math.inf)])]
    draw_curves(axes, nothing, log=log)
    add_legend(axes)
    assert axes.get_legend() is None
    draw_curves(axes, [*nothing, Curve("a line", LINE), Curve(None, LINE)], log=log)
    add_legend(axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a line"]


def test_zeros_of_a_log_axis_are_on_its_edge_and_say_so() -> None:
    axes = new_axes()
    draw_curves(axes, [Curve("a", FALLING), Curve("b", [(0.0, 0.0), (7.0, 1.0)])], log=True)
    assert axes.get_legend_handles_labels()[1] == ["a", "b (0 on the lower edge)"]
    first, second = axes.get_lines()
    assert min(second.get_ydata()) == axes.get_ylim()[0] < min(first.get_ydata())


def test_a_short_run_is_seen_beside_a_long_one() -> None:
    def rows(steps: int) -> list[dict]:
        values = {"loss": 1.0, "accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.5}
        return [dict.fromkeys(COLUMNS) | {"step": float(step), **values} for step in range(1, steps + 1)]

    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = list(figure.subplots(1, 2))
    runs = {"long": rows(50), "short": rows(1), "none": []}
    draw_task(axes, runs, title="t", baseline=1.0, baseline_name="guessing")
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["long", "short", "guessing (1)"]
    axes[1].get_legend().remove()
    assert pixels(figure, "C1") >= 20


@pytest.mark.parametrize(
    ("main", "table"),
    [
        (depth.main, "depth_digits.csv"),
        (hadamard.main, "hadamard.csv"),
        (drift.main, "drift.csv"),
        (run.main, "benchmarks.csv"),
        (wide.main, "wide.csv"),
    ],
    ids=["depth", "hadamard", "drift", "benchmarks", "wide"],
)
def test_a_table_of_the_results_is_drawn_anew(main, table: str, tmp_path: Path) -> None:
    for path in RESULTS.glob(f"{Path(table).stem}*.csv"):
        shutil.copy(path, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    main(["--draw", str(tmp_path / table)])
    assert (tmp_path / table).with_suffix(".png").read_bytes().startswith(PNG)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == before


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_logs_of_the_results_are_drawn_anew(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in RESULTS.glob(f"{path.stem}*.[cj]s*"):
        shutil.copy(source, tmp_path)
    report.main([str(tmp_path / path.name)])
    assert (tmp_path / path.name).with_suffix(".png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    assert all(label in printed for label in json.loads(path.read_text())["runs"])


def test_a_file_without_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text("{}")
    with pytest.raises(ValueError, match=r"runs.json: expected task and runs, got no task and no runs"):
        report.main([str(tmp_path / "runs.json")])


def test_bars_are_those_of_every_layer_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy(RESULTS / "benchmarks.csv", tmp_path)
    bars, barh = [], Axes.barh

    def noting(axes: Axes, labels: list[str], *rest: object, **more: object) -> object:
        bars.extend(labels)
        return barh(axes, labels, *rest, **more)

    monkeypatch.setattr(Axes, "barh", noting)
    run.draw(tmp_path / "benchmarks.csv")
    ours = ("dense", "factored", "local 3 x 3", "orthonormal 3 x 3")
    convolutions = [row for row in run.read(tmp_path / "benchmarks.csv") if row.case == "conv"]
    for row in convolutions:
        assert (f"conv {row.size}, {row.name}" in bars) == (row.name.removesuffix(", default") in ours), row


def test_every_case_of_drift_has_its_column() -> None:
    assert sorted(name for names in drift.FAMILIES.values() for name in names) == sorted(drift.CASES)

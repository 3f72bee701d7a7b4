"""The log of a run as CSV, and curves of one or several runs as PNG.

`python examples/report.py runs/copying_memory` compares the runs in the subfolders, also while they train.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLUMNS = (
    "step",
    "loss",  # mean over the training steps since the row before
    "accuracy",  # the same
    "test_loss",  # on held-out data, where there is any
    "test_accuracy",
    "unitarity_error",  # largest |W^H W - I|_F; empty for models without a unitary weight
    "learning_rate",  # of the step to come
    "seconds",  # spent in training steps since the start, over all resumes
    "steps_per_second",  # since the row before
)
Row = dict[str, float | None]


def read_rows(path: Path) -> list[Row]:
    """Complete rows of a log; a last line cut short by a crash is left out."""
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if None not in line.values()]
    return [{key: None if text == "" else float(text) for key, text in line.items()} for line in lines]


def _texts(row: Row) -> list[str]:
    return ["" if row[column] is None else f"{row[column]:.9g}" for column in COLUMNS]


class Log:
    """CSV file with the columns `COLUMNS`, one row at a time, on disk as soon as it is appended."""

    def __init__(self, path: Path, last_step: int = 0) -> None:
        """Start `path` anew, or keep its rows up to `last_step` (rows written after the checkpoint are repeated)."""
        self.path = path
        self.rows = [row for row in read_rows(path) if row["step"] <= last_step] if last_step else []
        temporary = path.with_name(path.name + ".part")
        with temporary.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *map(_texts, self.rows)])
        os.replace(temporary, path)

    def append(self, row: Row) -> None:
        """Add a row; columns it does not have stay empty."""
        self.rows.append({column: row.get(column) for column in COLUMNS})
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(_texts(self.rows[-1]))


def describe(row: Row) -> str:
    """One row in one line for the terminal."""
    formats = {
        "loss": "loss {:.3e}",
        "accuracy": "accuracy {:.3f}",
        "test_loss": "test loss {:.3e}",
        "test_accuracy": "test accuracy {:.3f}",
        "unitarity_error": "unitarity error {:.1e}",
        "steps_per_second": "{:.2f} steps/s",
    }
    parts = [text.format(row[name]) for name, text in formats.items() if row.get(name) is not None]
    return f"step {row['step']:.0f}: " + ", ".join(parts)


def _points(rows: list[Row], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a column where it is finite."""
    points = [(row["step"], row[name]) for row in rows if row[name] is not None and math.isfinite(row[name])]
    return [x for x, _ in points], [y for _, y in points]


def draw_task(axes: list[Any], runs: dict[str, list[Row]], *, title: str, baseline: float, baseline_name: str) -> None:
    """Loss (log scale, dashed baseline) and accuracy of runs on one task; held-out figures where there are any."""
    loss_axis, accuracy_axis = axes
    held_out = any(row["test_loss"] is not None for rows in runs.values() for row in rows)
    prefix = "test_" if held_out else ""
    for label, rows in runs.items():
        loss_axis.plot(*_points(rows, f"{prefix}loss"), label=label)
        accuracy_axis.plot(*_points(rows, f"{prefix}accuracy"), label=label)
    loss_axis.axhline(baseline, linestyle="--", color="grey", label=f"{baseline_name} ({baseline:.4g})")
    loss_axis.set(yscale="log", xlabel="training step", ylabel=f"{prefix}loss".replace("_", " "), title=title)
    accuracy_axis.set(ylim=(-0.02, 1.02), xlabel="training step", ylabel=f"{prefix}accuracy".replace("_", " "))
    accuracy_axis.legend(*loss_axis.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1, 0.5))


def draw_runs(path: Path, runs: dict[str, list[Row]], **task: Any) -> None:
    """PNG of one task; keywords as in `draw_task`."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    draw_task(list(figure.subplots(1, 2)), runs, **task)
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder whose subfolders hold one run each")
    folder = parser.parse_args(argv).folder
    logs = sorted(folder.glob("*/log.csv"))
    if not logs:
        raise ValueError(f"{folder}: expected subfolders with a log.csv, got none")
    runs = {log.parent.name: read_rows(log) for log in logs}
    for label, rows in runs.items():
        print(f"{label:12s} {describe(rows[-1]) if rows else 'no rows yet'}")
    draw_runs(folder / "curves.png", runs, **json.loads((logs[0].parent / "config.json").read_text())["task"])
    print(f"wrote {folder / 'curves.png'}")


if __name__ == "__main__":
    main()

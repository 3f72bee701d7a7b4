"""Curves of the loss and the accuracy of runs, as PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common.log import Row


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

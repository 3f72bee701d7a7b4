"""Curves of the loss and the accuracy of runs, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common.drawing import Curve, draw_curves
from common.log import Row


def _curves(runs: dict[str, list[Row]], name: str) -> list[Curve]:
    """A column of each run against its steps, where there is a value."""
    return [
        Curve(label, [(row["step"], row[name]) for row in rows if row[name] is not None])
        for label, rows in runs.items()
    ]


def draw_task(axes: list[Any], runs: dict[str, list[Row]], *, title: str, baseline: float, baseline_name: str) -> None:
    """Loss (log scale, dashed baseline) and accuracy of runs on one task; held-out figures where there are any."""
    loss_axis, accuracy_axis = axes
    held_out = any(row["test_loss"] is not None for rows in runs.values() for row in rows)
    prefix = "test_" if held_out else ""
    draw_curves(loss_axis, _curves(runs, f"{prefix}loss"), log=True)
    draw_curves(accuracy_axis, _curves(runs, f"{prefix}accuracy"))
    loss_axis.axhline(baseline, linestyle="--", color="grey", label=f"{baseline_name} ({baseline:.4g})")
    loss_axis.set(xlabel="training step", ylabel=f"{prefix}loss".replace("_", " "), title=title)
    accuracy_axis.set(ylim=(-0.02, 1.02), xlabel="training step", ylabel=f"{prefix}accuracy".replace("_", " "))
    accuracy_axis.legend(*loss_axis.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1, 0.5))


def draw_runs(path: Path, runs: dict[str, list[Row]], **task: Any) -> None:
    """PNG of one task; keywords as in `draw_task`."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    draw_task(list(figure.subplots(1, 2)), runs, **task)
    figure.savefig(path, dpi=120)

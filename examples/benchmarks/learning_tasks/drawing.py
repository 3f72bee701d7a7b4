"""A picture of the losses: a panel a task, a row a contender."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure

from .contenders import CONTENDERS
from .results import Row, standings


def draw(rows: list[Row], path: Path) -> None:
    """Writes the picture: a mark for each seed at the best rate, ours in colour."""
    found = standings(rows)
    columns = min(4, max(1, len(found)))
    lines = max(1, math.ceil(len(found) / columns))
    figure = Figure(figsize=(3.4 * columns, 2.4 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (task, of_task) in zip(panels, found.items(), strict=False):
        names = [name for name in CONTENDERS if name in of_task][::-1]
        for place, name in enumerate(names):
            best = of_task[name].rate
            runs = [r.loss for r in rows if (r.task, r.contender, r.rate) == (task, name, best)]
            runs = [loss for loss in runs if math.isfinite(loss)]
            color = "C0" if name.startswith("ours") else "C7"
            axes.plot(runs, [place] * len(runs), "o", color=color, markerfacecolor="none")
        axes.set(title=task, ylim=(-0.5, len(names) - 0.5))
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="y", alpha=0.3)
    for axes in list(figure.axes)[len(found) :]:
        axes.set_visible(False)
    figure.supxlabel("training loss at the end", fontsize=9)
    figure.savefig(path, dpi=90)

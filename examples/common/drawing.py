"""Curves that can all be seen, one that ends early or lies under another as well, and legends of what is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MARKERS = "osDv^PX*<>"
COLORS = 10  # that matplotlib has before it begins anew
MARKS = 6  # on a curve, beside the one at its end


class Curve(NamedTuple):
    """One line of a picture.

    Attributes:
        label: its name in the legend; None if it has none.
        points: pairs (x, y). Those that are not finite are left out.
        style: keywords of matplotlib's `plot`.
    """

    label: str | None
    points: Iterable[tuple[float, float]]
    style: dict[str, Any] = {}  # noqa: RUF012, a default that nobody writes to


def places(count: int, index: int, curves: int) -> list[int]:
    """Which of a curve's points carry a marker: some at places of its own among the curves, and the last one."""
    apart = max(1, count // MARKS)
    return sorted({*range(index * apart // curves, count, apart), count - 1})


def draw_curves(axes: Any, curves: Sequence[Curve], log: bool = False) -> None:
    """Draws curves, each with hollow markers of one shape, at places of its own and at its end.

    A curve without a finite point is not drawn and has no label. With `log` the y axis is logarithmic; values of 0 and
    below, which it cannot show, then lie on its lower edge, and the label says so.
    """
    found = [Curve(c.label, [p for p in c.points if all(map(math.isfinite, p))], c.style) for c in curves]
    found = [curve for curve in found if curve.points]
    positive = [y for curve in found for _, y in curve.points if y > 0]
    edge = min(positive, default=1.0) / 3
    if log:
        axes.set_yscale("log")
    lowest = False
    for index, (label, points, style) in enumerate(found):
        low = log and any(y <= 0 for _, y in points)
        lowest |= low
        shown = [(x, edge if log and y <= 0 else y) for x, y in points]
        again = {"linestyle": "--"} if index >= COLORS else {}
        style = {"marker": MARKERS[index % len(MARKERS)], "color": f"C{index}", "label": label, **again, **style}
        if low and style["label"] is not None:
            style["label"] += " (0 on the lower edge)"
        marks = {"markerfacecolor": "none", "markevery": places(len(shown), index, len(found))}
        axes.plot(*zip(*shown, strict=True), **marks, clip_on=False, zorder=2.5, **style)
    if lowest:
        axes.set_ylim(bottom=edge)


def add_legend(axes: Any, **options: Any) -> None:
    """The legend of the lines that are drawn; none where there is no line with a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)

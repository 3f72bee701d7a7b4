"""What became of each layer of a model that was converted or reverted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

HEADER = ("module", "from", "to", "|W - W'| / |W|")


@dataclass(frozen=True)
class Conversion:
    """What became of one layer.

    Attributes:
        module: its name in the model; empty for the model itself.
        before: name of its class.
        after: name of the class that it has now, or None if it was left alone.
        moved: ``|W - W'| / |W|`` (Frobenius norms), by how much its weights were changed; None where they have no
            values, or are not comparable.
        note: why it was left alone, or what else is to be known; else empty.
    """

    module: str
    before: str
    after: str | None = None
    moved: float | None = None
    note: str = ""


class Report(Sequence[Conversion]):
    """What became of the layers of a model, in the order of its modules; as text, a table.

    Args:
        rows: one for each layer that holds a matrix.

    Example:
        >>> report = Report([Conversion("fc", "Linear", "UnitaryLinear", 0.5), Conversion("tok", "Embedding")])
        >>> [row.module for row in report.converted], len(report)
        (['fc'], 2)
    """

    def __init__(self, rows: Sequence[Conversion]) -> None:
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> Conversion: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Conversion, ...]: ...

    def __getitem__(self, index: int | slice) -> Conversion | tuple[Conversion, ...]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Conversion]:
        return iter(self._rows)

    @property
    def converted(self) -> tuple[Conversion, ...]:
        """The layers that have another class now."""
        return tuple(row for row in self._rows if row.after is not None)

    @property
    def left(self) -> tuple[Conversion, ...]:
        """The layers that were left alone."""
        return tuple(row for row in self._rows if row.after is None)

    def __str__(self) -> str:
        cells = [HEADER, *map(_cells, self._rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER) - 1)]
        padded = [(*map(str.ljust, row, widths), row[-1]) for row in cells]
        lines = ["  ".join(row).rstrip() for row in padded]
        return "\n".join([*lines, f"{len(self.converted)} of {len(self)} layers converted"])

    __repr__ = __str__


def _cells(row: Conversion) -> tuple[str, ...]:
    moved = "" if row.moved is None else f"{row.moved:.2g}"
    last = f"{moved}  ({row.note})" if moved and row.note else moved or row.note
    return row.module or "(the model)", row.before, row.after or "-", last

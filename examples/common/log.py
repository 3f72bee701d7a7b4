"""The log of a run: rows of numbers in a CSV file."""

from __future__ import annotations

import csv
import os
from pathlib import Path

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

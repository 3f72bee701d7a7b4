"""Curves of several runs in one picture.

The runs are those in the subfolders of a folder, also while they train, or those that a JSON file names:

    python examples/report.py runs/copying_memory
    python examples/report.py results/permuted_mnist.json

The first writes curves.png into the folder. The second writes a PNG beside the file, which holds "task" (title,
baseline and its name) and "runs", the log of each label.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common.curves import draw_runs
from common.log import Row, describe, read_rows


def runs_of_folder(folder: Path) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """The rows of the runs in the subfolders, by name, and their task."""
    logs = sorted(folder.glob("*/log.csv"))
    if not logs:
        raise ValueError(f"{folder}: expected subfolders with a log.csv, got none")
    task = json.loads((logs[0].parent / "config.json").read_text())["task"]
    return {log.parent.name: read_rows(log) for log in logs}, task


def runs_of_file(path: Path) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """The rows of the runs that a JSON file names, by label, and their task."""
    content = json.loads(path.read_text())
    missing = [key for key in ("task", "runs") if key not in content]
    if missing:
        raise ValueError(f"{path}: expected task and runs, got no {' and no '.join(missing)}")
    return {label: read_rows(path.parent / name) for label, name in content["runs"].items()}, content["task"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder whose subfolders hold one run each, or a JSON file")
    source = parser.parse_args(argv).source
    is_file = source.suffix == ".json"
    runs, task = runs_of_file(source) if is_file else runs_of_folder(source)
    for label, rows in runs.items():
        print(f"{label:12s} {describe(rows[-1]) if rows else 'no rows yet'}")
    picture = source.with_suffix(".png") if is_file else source / "curves.png"
    draw_runs(picture, runs, **task)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()

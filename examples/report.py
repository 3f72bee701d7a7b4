"""Curves of several runs in one picture.

`python examples/report.py runs/copying_memory` compares the runs in the subfolders, also while they train.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common.curves import draw_runs
from common.log import describe, read_rows


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

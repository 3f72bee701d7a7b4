"""Makes the modules of examples/ importable, and tiny runs of them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import copying_memory
from common.training import Trainer

TINY = ("--width", "6", "--batch-size", "4", "--steps", "6", "--log-every", "1", "--device", "cpu", "--threads", "1")


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[..., Trainer]:
    """A run of six steps on copying memory in a folder of this test; options as on the command line."""

    def make(*options: str) -> Trainer:
        return Trainer(*copying_memory.setup([*TINY, "--delay", "3", "--out", str(tmp_path / "run"), *options]))

    return make


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the PNG at the end of each run, which takes longer than a tiny run itself."""
    monkeypatch.setattr(Trainer, "draw", lambda trainer: None)

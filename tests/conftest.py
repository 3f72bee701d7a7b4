"""One thread, and a derandomised profile of hypothesis, so that a run tells the same wherever it runs."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from hostile import TRIED

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _reproducible():
    """Seeds torch's default generator before each test; one thread, since most matrices here are small.

    Deterministic algorithms also fill new memory with NaN, so that a test that reads it fails on every machine.
    """
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tells how much of what ought to fail well was tried in this process."""
    if TRIED.total():
        terminalreporter.write_line(f"hostile inputs tried: {TRIED.total()} ({dict(TRIED)})")

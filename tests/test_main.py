"""``python -m unitary_layers``."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from unitary_layers import UnitaryLinear, __main__, __version__


def test_it_says_what_is_there_and_passes():
    command = [sys.executable, "-m", "unitary_layers"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == f"unitary_layers {__version__}"
    assert f"torch {version('torch')}" in run.stdout
    assert "unirnn_pixel_projunn" in run.stdout
    assert "trained weights: " in run.stdout
    assert "unissm_pixel_projunn.mnist" in run.stdout
    assert sum("|W^H W - I|" in line for line in lines) >= len(__main__.LAYERS)
    assert "passed in" in lines[-1]


def test_a_layer_that_does_not_learn_is_told(monkeypatch):
    monkeypatch.setattr(__main__, "LAYERS", {"idle": (lambda device: UnitaryLinear(8, 8, device=device), (4, 8))})
    monkeypatch.setattr(__main__, "trained", lambda layer, shape, device: (1.0, 1.0, 0.0))
    with pytest.raises(AssertionError, match="idle: expected a loss below"):
        list(__main__.self_test("cpu"))

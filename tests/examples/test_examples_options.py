"""Options mean something, in every script that takes them, or are refused before anything runs."""

from pathlib import Path
from types import ModuleType

import adding_problem
import copying_memory
import pytest
import train_image
from conftest import TINY
from training import Trainer


@pytest.mark.usefixtures("no_curves")
def test_factored_gradients_are_not_clipped_by_default(tmp_path: Path) -> None:
    options = [*TINY, "--length", "5", "--out", str(tmp_path / "run")]
    assert adding_problem.setup(options)[0].clip == 1
    trainer = Trainer(*adding_problem.setup([*options, "--gradient", "factored"]))
    assert trainer.args.clip is None
    assert trainer.run()[-1]["step"] == 6
    with pytest.raises(ValueError, match="--clip needs the gradient as a matrix"):
        adding_problem.setup([*options, "--gradient", "factored", "--clip", "1"])


@pytest.mark.parametrize("text", ["none", "inf"])
@pytest.mark.parametrize("script", [adding_problem, copying_memory, train_image], ids=lambda script: script.__name__)
def test_no_clipping_is_said_alike(script: ModuleType, text: str, tmp_path: Path) -> None:
    images = ["--images", "digits", "--device", "cpu", "--out", str(tmp_path)]
    if script is train_image:
        assert script.setup([*images, "--clip", text]).args.clip is None
    else:
        assert script.setup([*TINY, "--gradient", "factored", "--clip", text])[0].clip is None

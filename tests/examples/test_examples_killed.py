"""kill -9 at any instant of a run, also while a checkpoint is written: it goes on from a whole one, bit for bit."""

import subprocess
import sys
from pathlib import Path

import copying_memory
import pytest
import torch
import train_image
from common.checkpoint import load_checkpoint, previous_of
from common.image_training import ImageRun
from common.log import read_rows
from common.resumable import ResumableRun
from common.training import Trainer
from conftest import TINY
from test_examples_images import TINY as TINY_IMAGES
from test_examples_images import timeless
from test_examples_training import tensors

HERE = Path(__file__).parent
SEQUENCE, IMAGES = [*TINY, "--delay", "3"], [*TINY_IMAGES, "--opt", "adamw"]
# The n-th save has one rename more where there is a checkpoint to keep: its renames are number 2 n - 2 and 2 n - 1.
DEATHS = {  # where a run is killed, and the step (of images: five an epoch) of the newest whole checkpoint
    "in a step": (SEQUENCE, 3),
    "while the third is written": (SEQUENCE, 2),
    "before rename 4": (SEQUENCE, 2),
    "before rename 5": (SEQUENCE, 2),
    "images, before rename 3": (IMAGES, 5),
}

# Imports once; then each run is a process of its own, which gets SIGKILL.
KILLS = """
import io, os, signal, sys
sys.path.insert(0, sys.argv[1])
import conftest, torch
import test_examples_killed as cases
torch.set_num_threads(1)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(function, when):
    def wrapped(*args, **kwargs):
        if when(*args):
            die()
        return function(*args, **kwargs)
    return wrapped

def arm(run, where):
    calls = []
    def third(content, file):
        calls.append(0)
        if len(calls) == 3:
            data = io.BytesIO()
            save(content, data)
            file.write(data.getvalue()[:data.tell() // 2])
            file.flush()
        return len(calls) == 3
    def renamed(source, target):
        calls.extend([0] * ("checkpoint" in target.name))
        return len(calls) == int(where.split()[-1])
    save = torch.save
    if where == "in a step":
        run.task.batch = dying(run.task.batch, lambda step: step == 3)
    elif where == "while the third is written":
        torch.save = dying(torch.save, third)
    else:
        os.replace = dying(os.replace, renamed)

for where in cases.DEATHS:
    child = os.fork()
    if child == 0:
        run = cases.run_of(where, sys.argv[2])
        arm(run, where)
        run.run()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, where
"""


def run_of(where: str, root: str, *options: str) -> ResumableRun:
    """The run of a case, in a folder of its name."""
    argv = [*DEATHS[where][0], "--out", str(Path(root) / where), *options]
    return train_image.setup(argv) if where.startswith("images") else Trainer(*copying_memory.setup(argv))


def state_after(run: ResumableRun) -> tuple[list[torch.Tensor], list]:
    """Every tensor that a run ends with, and its log without times."""
    run.run()
    return list(tensors(run.state())), timeless(read_rows(run.log.path))


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "draw", lambda run: None)
    monkeypatch.setattr(ImageRun, "draw", lambda run: None)
    command = [sys.executable, "-c", KILLS, str(HERE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    wholes = {}
    for where, (options, step) in DEATHS.items():
        if id(options) not in wholes:
            wholes[id(options)] = state_after(run_of(where, str(tmp_path / "whole")))
        path = tmp_path / where / "checkpoint.pt"
        assert load_checkpoint(path if path.exists() else previous_of(path))["step"] == step, where
        if not path.exists():
            with pytest.warns(UserWarning, match=r"checkpoint.pt is missing; .*checkpoint.previous.pt is used instead"):
                resumed = run_of(where, str(tmp_path), "--resume")
        else:
            resumed = run_of(where, str(tmp_path), "--resume")
        assert resumed.step == step, where
        (ours, log), (theirs, whole_log) = state_after(resumed), wholes[id(options)]
        assert len(ours) == len(theirs) > 1, where
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), where
        assert log == whole_log, where

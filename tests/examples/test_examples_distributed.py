"""The distributed example: a rank is killed, torchrun starts the ranks again, and nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_distributed
from common.log import read_rows

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = "--width 8 --batch-size 16 --steps 6 --log-every 2 --threads 1 --device cpu --resume"
DIES = """
import os, signal, sys
sys.path.insert(0, {examples!r})
import train_distributed
step = train_distributed.RankTrainer.train_step
def dies(self):
    if self.rank == 1 and self.step == 4 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
train_distributed.RankTrainer.train_step = dies
train_distributed.main(sys.argv[1:])
"""


def launch(script: Path, out: Path) -> str:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        "--standalone",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [*command, str(script), *OPTIONS.split(), "--out", str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_run_has_a_folder_of_its_own(tmp_path: Path):
    assert train_distributed.setup(["--threads", "1"])[0].out == Path("runs/train_distributed/unitary")
    assert train_distributed.setup(["--threads", "1", "--out", str(tmp_path)])[0].out == tmp_path
    with pytest.raises(ValueError, match="expected --model unitary, got 'lstm'"):
        train_distributed.setup(["--threads", "1", "--model", "lstm"])


@pytest.mark.slow
def test_a_killed_rank_loses_nothing(tmp_path: Path):
    wrapper = tmp_path / "dies.py"
    wrapper.write_text(DIES.format(examples=str(EXAMPLES)))
    launch(EXAMPLES / "train_distributed.py", tmp_path / "whole")
    launch(wrapper, tmp_path / "killed")
    logs = [read_rows(tmp_path / run / "log.csv") for run in ("whole", "killed")]
    steps = [1, 2, 4, 6]
    assert [[row["step"] for row in rows] for rows in logs] == [steps, steps]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    models = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)["model"] for run in ("whole", "killed")]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())

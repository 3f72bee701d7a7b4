"""Every script runs with tiny settings, and says so where an option is wrong."""

import csv
import re
from pathlib import Path
from types import ModuleType

import adding_problem
import copying_memory
import demo
import pixel_sequence
import pytest
import report
import torch
from common.checkpoint import load_checkpoint
from common.models import SequenceModel, open_forget_gates_
from common.training import Trainer
from conftest import TINY

SCRIPTS = {
    copying_memory: ("--delay", "3"),
    adding_problem: ("--length", "5"),
    pixel_sequence: ("--images", "digits", "--permute"),
}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_script_runs_and_is_reported(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("unitary", "lstm"):
        script.main([*TINY, *SCRIPTS[script], "--steps", "2", "--model", kind, "--out", str(tmp_path / kind)])
        assert {file.name for file in (tmp_path / kind).iterdir()} == {
            "checkpoint.pt",
            "checkpoint.previous.pt",
            "config.json",
            "curves.png",
            "log.csv",
        }
    report.main([str(tmp_path)])
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out
    assert re.search(r"^unitary step 1: loss .*, accuracy .*, unitarity error .*e-0\d, .* steps/s$", printed, re.M)
    assert re.search(r"^lstm +step 2: loss ", printed, re.M)


def test_epochs_count_the_steps(tmp_path: Path) -> None:
    args, task = pixel_sequence.setup(["--images", "digits", "--epochs", "3", "--out", str(tmp_path)])
    assert task.eval_every == 1437 // 128
    assert args.steps == 3 * task.eval_every


BAD_OPTIONS = [
    ("--width 0", "--width must be at least 1, got 0"),
    ("--steps -1", "--steps must be at least 1"),
    ("--log-every 0", "--log-every must be at least 1"),
    ("--threads 0", "--threads must be at least 1"),
    ("--batch-size 0", "--batch-size must be at least 1"),
    ("--readout-width 0", "--readout-width must be at least 1"),
    ("--rank 0", "--rank must be at least 1"),
    ("--clip 0", "--clip must be positive"),
    ("--clip 1 --gradient factored", "--clip needs the gradient as a matrix"),
    ("--delay 0", "delay must be at least 1"),
    ("--lr -1", "lr|learning rate"),
    ("--direction rmsprop --unitary-lr-scale -1", "unitary_lr_scale"),
    ("--unitary-lr-scale 1/8", "--unitary-lr-scale needs --direction rmsprop, got spectral"),
    ("--unitary-lr -1", "lr"),
    ("--direction rmsprop --unitary-lr 0.1", "--unitary-lr needs --direction spectral, got rmsprop"),
    ("--model rnn --frozen", "--frozen needs --model unitary or ssm, got rnn"),
    ("--model rnn --bits 4", "--bits needs --model unitary, got rnn"),
    ("--bits 1", "expected weight_bits to be None or an integer from 2 to 8, got 1"),
    ("--init nowhere", "init"),
    ("--sampler nothing", "sampler"),
    ("--nonlinearity sigmoid", "nonlinearity"),
    ("--model ssm --gradient factored", "--model ssm needs --gradient dense, got factored"),
    ("--model rnn --nonlinearity modrelu", "nn.RNN knows"),
    ("--model ssm --nonlinearity relu", "a state space is linear"),
    ("--model rnn --lr -1", "Invalid learning rate"),
    ("--model lstm --nonlinearity relu", "nn.LSTM has its own"),
]


@pytest.mark.parametrize(("options", "match"), BAD_OPTIONS, ids=[options for options, _ in BAD_OPTIONS])
def test_bad_options_are_refused_and_leave_no_folder(tmp_path: Path, options: str, match: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=match):
        Trainer(*copying_memory.setup([*TINY, "--out", str(out), *options.split()]))
    assert not out.exists()


def test_bad_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="--epochs must be at least 1, got 0"):
        pixel_sequence.setup(["--images", "digits", "--epochs", "0"])


def test_report_wants_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected subfolders with a log.csv, got none"):
        report.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("unitary", "modrelu"), ("ssm", None), ("rnn", "tanh"), ("lstm", None)],
    ids=["unitary", "ssm", "rnn", "lstm"],
)
def test_default_nonlinearity_is_that_of_the_model(tmp_path: Path, kind: str, expected: str | None) -> None:
    args, task = copying_memory.setup([*TINY, "--model", kind, "--out", str(tmp_path)])
    assert args.nonlinearity == expected
    assert getattr(Trainer(args, task).model.layer, "nonlinearity", None) == expected
    assert getattr(SequenceModel(kind, 2, 3, 1, False).layer, "nonlinearity", None) == expected


def test_read_out_after_the_last_step_is_that_of_the_last_step() -> None:
    model = SequenceModel("unitary", 2, 3, 4, True)
    inputs = torch.randn(5, 6, 2)
    everywhere = model(inputs)
    model.every_step = False
    assert everywhere.shape == (5, 6, 4)
    assert torch.equal(model(inputs), everywhere[-1])


def test_a_state_space_reads_rectified_units_and_gives_what_is_wanted() -> None:
    every, last = (SequenceModel("ssm", 2, 3, 4, every_step) for every_step in (True, False))
    last.load_state_dict(every.state_dict())
    inputs = torch.randn(5, 6, 2)
    states, _ = every.layer.ssm(torch.relu(inputs @ every.layer.encoder.weight.T + every.layer.encoder.bias))
    torch.testing.assert_close(every(inputs), every.readout(states))
    torch.testing.assert_close(last(inputs), every(inputs)[-1])


def test_read_out_of_two_layers(tmp_path: Path) -> None:
    args, task = pixel_sequence.setup([*TINY, *SCRIPTS[pixel_sequence], "--readout-width", "5", "--out", str(tmp_path)])
    model = Trainer(args, task).model
    first, _, last = model.readout
    inputs, _ = task.batch(0)
    _, h_n = model.layer(inputs)
    assert (first.weight.shape, last.weight.shape) == ((5, 6), (10, 5))
    assert torch.equal(model(inputs), last(first(h_n[0]).relu()))


def test_forget_gates_start_open() -> None:
    lstm = open_forget_gates_(torch.nn.LSTM(2, 3), 1.0)
    gates = lstm.bias_ih_l0 + lstm.bias_hh_l0
    assert torch.equal(gates[3:6], torch.ones(3))
    assert not (gates[:3] == 1).any()
    assert not (gates[6:] == 1).any()


@pytest.mark.usefixtures("no_curves")
def test_demo_runs_twice_and_leaves_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in ("0", "1"):
        demo.main(["--quick", "--threads", "1", "--seed", seed, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.count("loaded into a fresh model: outputs bit-identical") == 4
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [label for recipe in demo.RECIPES for label in recipe.models]
    assert all(float(row["test_loss"]) > 0 and 0 <= float(row["test_accuracy"]) <= 1 for row in rows)
    assert all(bool(row["unitarity_error"]) == row["model"].startswith("UnitaryRNN") for row in rows)
    assert load_checkpoint(tmp_path / "copying_memory" / "unitaryrnn" / "checkpoint.pt")["step"] == 4
    assert (tmp_path / "pixel_sequence" / "unitaryrnn_from_identity_frozen" / "log.csv").exists()


def test_demo_sees_a_checkpoint_of_other_weights(tmp_path: Path) -> None:
    args, task = copying_memory.setup([*TINY, "--delay", "3", "--out", str(tmp_path)])
    trainer = Trainer(args, task)
    trainer.run()
    demo.check_checkpoint(trainer)
    trainer.train_step()
    with pytest.raises(RuntimeError, match="expected the outputs of the trained model"):
        demo.check_checkpoint(trainer)

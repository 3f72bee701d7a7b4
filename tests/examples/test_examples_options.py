"""Options mean something, in every script that takes them, or are refused before anything runs."""

import argparse
from pathlib import Path
from types import ModuleType

import adding_problem
import certified
import copying_memory
import depth
import drift
import pytest
import train_image
from common.image_training import ImageRun
from common.training import Trainer, update_options
from conftest import TINY

from unitary_layers import UpdateRule


def options_of(tmp_path: Path, line: str) -> argparse.Namespace:
    return copying_memory.setup([*TINY, "--out", str(tmp_path / "run"), *line.split()])[0]


def rule_of(tmp_path: Path, line: str) -> UpdateRule:
    return UpdateRule(**update_options(options_of(tmp_path, line)))


def test_the_default_rule_is_that_of_the_layers(tmp_path: Path) -> None:
    assert rule_of(tmp_path, "") == rule_of(tmp_path, "--gradient factored") == UpdateRule()
    assert rule_of(tmp_path, "--rank 3 --unitary-lr 1/8 --variant D") == UpdateRule("D", rank=3, lr=0.125)


def test_the_recipe_of_the_paper_is_one_option(tmp_path: Path) -> None:
    assert options_of(tmp_path, "").unitary_lr_scale is None
    assert options_of(tmp_path, "--direction rmsprop").unitary_lr_scale == 1 / 32
    paper = UpdateRule(rank=1, direction="gradient")
    assert rule_of(tmp_path, "--direction rmsprop") == paper
    with pytest.raises(ValueError, match="--direction rmsprop needs --gradient dense, got factored"):
        options_of(tmp_path, "--direction rmsprop --gradient factored")
    images = ["--images", "digits", "--device", "cpu", "--direction", "rmsprop"]
    run = train_image.setup([*images, *SMALL, "--out", str(tmp_path / "images")])
    (group,) = run.optimizer.param_groups
    assert (group["direction"], group["unitary_lr_scale"]) == ("rmsprop", 0.1)
    with pytest.raises(ValueError, match="--direction rmsprop needs --opt projunn, got adamw"):
        train_image.setup([*images, "--opt", "adamw"])
    with pytest.raises(ValueError, match="--unitary-lr-scale needs --direction rmsprop, got spectral"):
        certified.main([*IMAGES, "--unitary-lr-scale", "0.1", "--out", str(tmp_path / "certified")])


def test_depth_follows_the_paper_and_other_optimisers_the_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(depth, "make_loaders", lambda args: seen.append(args) or pytest.fail("enough"))
    for line in ("", "--opt adamw", "--direction spectral"):
        with pytest.raises(pytest.fail.Exception):
            depth.main([*IMAGES, "--out", str(tmp_path), *line.split()])
    assert [args.direction for args in seen] == ["rmsprop", "spectral", "spectral"]
    assert [args.unitary_lr_scale for args in seen] == [0.03, None, None]


@pytest.mark.usefixtures("no_curves")
def test_factored_gradients_are_not_clipped_by_default(tmp_path: Path) -> None:
    options = [*TINY, "--length", "5", "--out", str(tmp_path / "run")]
    assert adding_problem.setup(options)[0].clip == 1
    trainer = Trainer(*adding_problem.setup([*options, "--gradient", "factored"]))
    assert trainer.args.clip is None
    assert trainer.run()[-1]["step"] == 6
    with pytest.raises(ValueError, match="--clip needs the gradient as a matrix"):
        adding_problem.setup([*options, "--gradient", "factored", "--clip", "1"])


@pytest.mark.parametrize("kind", ["unitary", "rnn"])
def test_base_is_the_rule_of_the_other_weights(kind: str, tmp_path: Path) -> None:
    moved = {}
    for base in ("rmsprop", "adamw"):
        options = [*TINY, "--length", "5", "--model", kind, "--base", base, "--out", str(tmp_path / base)]
        trainer = Trainer(*adding_problem.setup(options))
        before = trainer.model.readout.weight.detach().clone()
        trainer.train_step()
        moved[base] = float((trainer.model.readout.weight.detach() - before).abs().max())
    assert moved["adamw"] == pytest.approx(3e-3, rel=1e-3)  # RMSprop's first step is ten times as long
    assert moved["rmsprop"] == pytest.approx(3e-2, rel=1e-3)


@pytest.mark.parametrize("text", ["none", "inf"])
@pytest.mark.parametrize("script", [adding_problem, copying_memory, train_image], ids=lambda script: script.__name__)
def test_no_clipping_is_said_alike(script: ModuleType, text: str, tmp_path: Path) -> None:
    images = ["--images", "digits", "--device", "cpu", "--out", str(tmp_path)]
    if script is train_image:
        assert script.setup([*images, "--clip", text]).args.clip is None
    else:
        assert script.setup([*TINY, "--gradient", "factored", "--clip", text])[0].clip is None


IMAGES = ("--images", "digits", "--batch-size", "512", "--epochs", "1", "--device", "cpu", "--threads", "1")
SMALL = ("--model-kwargs", "stem_width=4", "widths=(4,8)", "depths=(1,0)")


def test_no_schedule_keeps_the_rate_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageRun, "draw", lambda run: None)
    options = [*IMAGES, *SMALL, "--sched", "none", "--lr", "0.004", "--out", str(tmp_path / "run")]
    assert train_image.setup(options).run()[-1]["learning_rate"] == 0.004
    assert train_image.setup([*options, "--resume"]).epoch == 1


def test_plateau_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--sched must be a schedule of the step alone, got plateau"):
        train_image.setup([*IMAGES, "--sched", "plateau", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--model bogus", "--model-kwargs a=1", "--update X"])
@pytest.mark.parametrize("script", [depth, certified], ids=lambda script: script.__name__)
def test_options_of_one_model_are_not_those_of_a_comparison(
    script: ModuleType, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.main([*IMAGES, "--out", str(tmp_path / "run"), *option.split()])
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_loss_of_margins_is_not_smoothed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--smoothing does not fit"):
        certified.main([*IMAGES, "--smoothing", "0.1", "--out", str(tmp_path / "run")])


def test_quick_is_quick_at_every_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run_one(args: argparse.Namespace, kind: str, count: int, loaders: tuple) -> None:
        seen.append((args.epochs, args.depths, kind))
        raise InterruptedError

    monkeypatch.setattr(depth, "run_one", run_one)
    for options in ([], ["--depths", "3"]):
        with pytest.raises(InterruptedError):
            depth.main(["--quick", *options, "--threads", "1", "--out", str(tmp_path)])
    assert seen == [(1, [10, 30], "orthogonal"), (1, [3], "orthogonal")]


def test_resuming_takes_another_attack_and_more_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageRun, "draw", lambda run: None)
    for attack in (["--attacked", "8", "--attack-steps", "1"], ["--attacked", "9", "--attack-steps", "2"]):
        certified.main([*IMAGES, *attack, "--resume", "--out", str(tmp_path / "certified")])
    for networks in (["--depths", "3", "--kinds", "conv"], ["--depths", "3", "4", "--kinds", "conv", "conv_he"]):
        depth.main([*IMAGES, *networks, "--resume", "--out", str(tmp_path / "depth")])
    assert len((tmp_path / "depth" / "depth.csv").read_text().splitlines()) == 1 + 4
    with pytest.raises(RuntimeError, match=r"temperature: expected 0.1, got 5.0"):
        certified.main([*IMAGES, "--temperature", "5", "--resume", "--out", str(tmp_path / "certified")])


@pytest.mark.parametrize("text", ["1/0", "1e400", "much"])
def test_what_is_no_number_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option, kind in (("--lr", "number"), ("--clip", "number_or_none")):
        with pytest.raises(SystemExit):
            copying_memory.setup([option, text])
        assert f"argument {option}: invalid {kind} value: '{text}'" in capsys.readouterr().err


def test_a_folder_without_cases_is_not_drawn(tmp_path: Path) -> None:
    out = tmp_path / "new"
    with pytest.raises(ValueError, match="new: expected the rows of a case or more, got none"):
        drift.main(["--cases", "--out", str(out)])
    assert not out.exists()

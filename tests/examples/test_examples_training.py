"""The training loop: resuming bit for bit, the log, and losses that are not finite."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from common.log import COLUMNS, Log, Row, read_rows
from common.training import Trainer

pytestmark = pytest.mark.usefixtures("no_curves")
TIMES = ("seconds", "steps_per_second")
MODELS = ("unitary", "ssm", "rnn", "lstm")
UNITARY = ("--gradient factored", "--direction rmsprop", "--frozen")


def stop_at(trainer: Trainer, step: int) -> None:
    """Runs until the batch of this step (counted from 0), and there the user presses Ctrl-C."""
    batch = trainer.task.batch

    def interrupted(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == step:
            raise KeyboardInterrupt
        return batch(index)

    trainer.task.batch = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.run()


def tensors(state: object) -> Iterator[torch.Tensor]:
    """All tensors of a nested state, in order."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)


def timeless(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_same_run(first: Trainer, second: Trainer) -> None:
    """Same weights, optimiser state and log, bit for bit."""
    for name in ("model", "optimizer"):
        ours, theirs = (list(tensors(getattr(trainer, name).state_dict())) for trainer in (first, second))
        assert len(ours) == len(theirs) > 1
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), name
    assert timeless(read_rows(first.log.path)) == timeless(read_rows(second.log.path))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("model", [*MODELS, *(f"unitary {options}" for options in UNITARY)])
def test_resuming_continues_bit_for_bit(
    trainer_of: Callable[..., Trainer], tmp_path: Path, model: str, schedule: str
) -> None:
    options = ("--model", *model.split(), "--schedule", schedule)
    whole = trainer_of(*options, "--out", str(tmp_path / "whole"))
    whole.run()
    interrupted = trainer_of(*options)
    stop_at(interrupted, 3)
    assert interrupted.step == 3
    resumed = trainer_of(*options, "--resume")
    assert resumed.step == 3
    resumed.run()
    assert_same_run(resumed, whole)
    assert whole.log.rows[0]["learning_rate"] == pytest.approx(3e-3 * (1 + math.cos(math.pi / 6)) / 2) or (
        schedule == "constant"
    )


@pytest.mark.parametrize("sampler", ["power", "column"])
def test_resuming_keeps_the_state_of_the_sampler(
    trainer_of: Callable[..., Trainer], tmp_path: Path, sampler: str
) -> None:
    options = ("--sampler", sampler, "--rank", "2", "--variant", "D")
    whole = trainer_of(*options, "--out", str(tmp_path / "whole"))
    whole.run()
    stop_at(trainer_of(*options), 4)
    resumed = trainer_of(*options, "--resume")
    resumed.run()
    assert_same_run(resumed, whole)


def test_steps_may_grow_where_the_schedule_does_not_depend_on_them(trainer_of: Callable[..., Trainer]) -> None:
    trainer_of().run()
    longer = trainer_of("--resume", "--steps", "8")
    longer.run()
    assert [row["step"] for row in read_rows(longer.log.path)] == list(range(1, 9))


def test_resuming_starts_where_there_is_nothing(trainer_of: Callable[..., Trainer]) -> None:
    assert [row["step"] for row in trainer_of("--resume").run()] == list(range(1, 7))


def test_a_finished_run_is_neither_replaced_nor_repeated_by_accident(trainer_of: Callable[..., Trainer]) -> None:
    trainer_of().run()
    with pytest.raises(RuntimeError, match="holds a run"):
        trainer_of()
    finished = trainer_of("--resume")
    finished.run()
    assert [row["step"] for row in read_rows(finished.log.path)] == list(range(1, 7))
    assert [row["step"] for row in trainer_of("--overwrite", "--steps", "2").run()] == [1, 2]


def test_other_options_are_refused_on_resuming(trainer_of: Callable[..., Trainer]) -> None:
    stop_at(trainer_of(), 3)
    with pytest.raises(RuntimeError, match=r"lr: expected 0.003, got 0.01; width: expected 6, got 7"):
        trainer_of("--resume", "--lr", "1e-2", "--width", "7")
    with pytest.raises(
        RuntimeError, match=r"direction: expected 'spectral', got 'rmsprop'; rank: expected 'auto', got 1"
    ):
        trainer_of("--resume", "--direction", "rmsprop")


def test_rows_after_the_checkpoint_are_repeated_not_doubled(trainer_of: Callable[..., Trainer]) -> None:
    stopped = trainer_of()
    stop_at(stopped, 3)
    path = stopped.log.path
    with path.open("a") as file:  # a crash between the row of step 4 and its checkpoint, in the middle of a line
        file.write(path.read_text().splitlines()[-1].replace("3,", "4,", 1) + "\n5,0.1")
    rows = trainer_of("--resume").run()
    assert [row["step"] for row in rows] == list(range(1, 7))
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert [line.split(",")[0] for line in lines[1:]] == list("123456")


def test_log_is_read_back_as_written(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.csv")
    log.append({"step": 1, "loss": 1 / 3})
    log.append({"step": 2, "loss": math.inf, "test_loss": 2.5})
    rows = read_rows(tmp_path / "log.csv")
    assert rows[0]["loss"] == pytest.approx(1 / 3, rel=1e-8)
    assert rows[0]["test_loss"] is None
    assert rows[1]["loss"] == math.inf
    assert rows[1]["test_loss"] == 2.5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(
    trainer_of: Callable[..., Trainer], capsys: pytest.CaptureFixture[str], model: str, bad: float
) -> None:
    trainer = trainer_of("--model", model)
    loss = trainer.task.loss
    trainer.task.loss = lambda outputs, targets: loss(outputs, targets) * (bad if trainer.step == 3 else 1)
    rows = trainer.run()
    assert f"stopped, the loss of step 4 is {bad}" in capsys.readouterr().out
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert not math.isfinite(rows[-1]["loss"])
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    resumed = trainer_of("--model", model, "--resume")
    assert resumed.step == 3, "the checkpoint before stays"
    assert [row["step"] for row in resumed.run()] == list(range(1, 7))


def test_folder_tells_what_was_run(trainer_of: Callable[..., Trainer]) -> None:
    trainer = trainer_of()
    trainer.run()
    config = json.loads((trainer.args.out / "config.json").read_text())
    assert config["options"]["nonlinearity"] == "modrelu"
    assert config["task"]["title"] == "copying memory, delay 3"


def test_unitary_weights_stay_unitary_and_move(trainer_of: Callable[..., Trainer]) -> None:
    trainer = trainer_of()
    before = trainer.model.layer.recurrent_matrix().detach().clone()
    rows = trainer.run()
    assert rows[-1]["unitarity_error"] < 10 * 6 * torch.finfo(torch.float32).eps
    assert not torch.equal(before, trainer.model.layer.recurrent_matrix())
    assert trainer_of("--model", "lstm", "--overwrite").run()[-1]["unitarity_error"] is None


@pytest.mark.parametrize("gradient", ["dense", "factored"])
def test_a_frozen_weight_stays_where_it_starts(trainer_of: Callable[..., Trainer], gradient: str) -> None:
    trainer = trainer_of("--frozen", "--gradient", gradient)
    recurrent, readout = (
        w.detach().clone() for w in (trainer.model.layer.recurrent_matrix(), trainer.model.readout.weight)
    )
    trainer.run()
    assert torch.equal(recurrent, trainer.model.layer.recurrent_matrix())
    assert not torch.equal(readout, trainer.model.readout.weight)


def test_gradients_are_clipped(trainer_of: Callable[..., Trainer]) -> None:
    trainer, norms = trainer_of("--model", "rnn", "--clip", "1e-3"), []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: norms.append(
            torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]).norm()
        )
    )
    trainer.train_step()
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)

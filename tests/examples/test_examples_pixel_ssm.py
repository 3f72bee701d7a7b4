"""The state space example: its images, what it freezes, and a run that is stopped and resumed."""

from pathlib import Path

import pixel_ssm
import pytest
import torch
from common.images import load_images
from common.log import read_rows
from common.pixels import moved
from common.tasks import generator_for
from safetensors.torch import load_file

TINY = ["--images", "digits", "--widths", "6", "6", "--batch-size", "400", "--epochs", "2", "--threads", "1"]
TIMES = ("seconds", "steps_per_second")


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the picture at the end."""
    monkeypatch.setattr(pixel_ssm, "draw_runs", lambda *args, **task: None)


def test_images_are_moved_first_and_permuted_then():
    source = load_images("digits", "")
    still, moved = (pixel_ssm.OrderedPixels(source, permute=True, shift=shift) for shift in (0, 1))
    index = torch.arange(64)
    (plain, labels), (images, same) = (data.batch(index, generator_for(0, 0)) for data in (still, moved))
    assert torch.equal(labels, same)
    back = torch.empty_like(still.order)
    back[still.order] = torch.arange(len(back))
    plain, images = (t.flatten(1)[:, back].view(-1, 8, 8) for t in (plain, images))
    assert torch.equal(plain, still.train[0][index, 0])
    moves = set()
    for before, after in zip(plain, images, strict=True):
        framed = torch.nn.functional.pad(before, (1, 1, 1, 1), value=moved.blank)
        windows = {(i, j): framed[i : i + 8, j : j + 8] for i in range(3) for j in range(3)}
        found = [place for place, window in windows.items() if torch.equal(window, after)]
        assert found
        moves.add(found[0])
    assert len(moves) == 9


def test_colours_of_a_pixel_stay_together_and_some_images_are_mirrored():
    images = torch.rand(40, 1, 4, 4).expand(40, 3, 4, 4) * torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    source = {"train": (images, torch.zeros(40)), "test": (images, torch.zeros(40)), "largest": 4}
    data = pixel_ssm.OrderedPixels(source, permute=True, flip=True)
    shown, _ = data.batch(torch.arange(40), generator_for(0, 0))
    torch.testing.assert_close(shown, shown[:, :1].expand_as(shown))  # standardised, the channels are alike
    still, mirrored = (data.shown(data.train[0].flip(dims)) for dims in ((), (3,)))
    is_still, is_mirrored = ((shown == other).flatten(1).all(dim=1) for other in (still, mirrored))
    assert torch.equal(is_still, ~is_mirrored)
    assert 0 < is_still.sum() < 40


def test_places_are_counted_from_the_top_left():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    (found,) = moved(image, torch.tensor([[0, 2]]), shift=1, blank=-1)
    assert found.tolist() == [[[-1, -1, -1, -1], [1, 2, 3, -1], [5, 6, 7, -1]]]


@pytest.mark.parametrize("basis", pixel_ssm.BASES)
def test_bases_move_only_where_they_learn(basis, tmp_path: Path, no_curves):
    run = pixel_ssm.PixelRun(pixel_ssm.setup([*TINY, "--basis", basis, "--out", str(tmp_path)]))
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    run.train_epoch()
    still = {name for name, p in run.model.named_parameters() if torch.equal(p, before[name])}
    bases = {name for name in before if "basis" in name}
    assert len(bases) == 2
    assert still == (set() if basis == "learnt" else bases)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, no_curves, monkeypatch: pytest.MonkeyPatch):
    pixel_ssm.main([*TINY, "--out", str(tmp_path / "whole")])
    options = [*TINY, "--out", str(tmp_path / "stopped")]
    run = pixel_ssm.PixelRun(pixel_ssm.setup(options))
    monkeypatch.setattr(run.args, "epochs", 1)  # with the schedule of two
    save = run.save
    monkeypatch.setattr(run, "save", lambda: (setattr(run.args, "epochs", 2), save(), setattr(run.args, "epochs", 1)))
    run.run()
    with pytest.raises(RuntimeError, match="holds a run"):
        pixel_ssm.main(options)
    pixel_ssm.main([*options, "--resume"])
    logs = [read_rows(tmp_path / name / "log.csv") for name in ("whole", "stopped")]
    rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in log] for log in logs]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped")]
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())

"""Checkpoints are whole or refused, and a refusal changes nothing."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from common.checkpoint import KEYS, DamagedCheckpoint, load_checkpoint, load_latest, previous_of, save_checkpoint
from common.training import Trainer

pytestmark = pytest.mark.usefixtures("no_curves")
REFUSAL = r"checkpoint.pt: expected a whole checkpoint .* got a truncated or corrupt file"


def content(value: float = 1.0) -> dict[str, object]:
    return dict.fromkeys(KEYS) | {"step": 3, "config": {"width": 6}, "model": {"w": torch.full((5, 5), value)}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint.pt", content())
    return tmp_path / "checkpoint.pt"


def folder(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def place_of(path: Path, record: str) -> int:
    """Where the data of a record of the archive begins."""
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(record))
        data = archive.read(info)
    return path.read_bytes().index(data, info.header_offset)


def damaged(data: bytes, damage: str, place: int) -> bytes:
    return {"truncated": data[:place], "empty": b"", "flipped": flipped(data, place + 5, 3)}[damage]


every_damage = pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])


@pytest.mark.parametrize("record", ["data/0", "data.pkl"])
@pytest.mark.parametrize("kind", ["unitary", "rnn"])
@every_damage
def test_damaged_checkpoints_are_refused_and_nothing_changes(
    trainer_of: Callable[..., Trainer], kind: str, damage: str, record: str
) -> None:
    trainer = trainer_of("--model", kind)
    trainer.run()
    for path in (trainer.checkpoint, previous_of(trainer.checkpoint)):
        path.write_bytes(damaged(path.read_bytes(), damage, place_of(path, record)))
    before = folder(path.parent)
    with pytest.raises(RuntimeError, match=f"{REFUSAL}.*nor can the previous one be used: .*checkpoint.previous.pt"):
        trainer_of("--model", kind, "--resume")
    assert folder(path.parent) == before


@pytest.mark.parametrize("kind", ["unitary", "rnn"])
@every_damage
def test_the_previous_checkpoint_is_used_where_the_newest_is_damaged(
    trainer_of: Callable[..., Trainer], kind: str, damage: str
) -> None:
    trainer = trainer_of("--model", kind)
    trainer.run()
    path, whole = trainer.checkpoint, trainer.state()
    data = damaged(path.read_bytes(), damage, place_of(path, "data/0"))
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=rf"{REFUSAL}.*; .*checkpoint.previous.pt is used instead, of step 5$"):
        resumed = trainer_of("--model", kind, "--resume")
    assert [row["step"] for row in resumed.log.rows] == [1, 2, 3, 4, 5], "the log ends where the run goes on"
    assert path.with_name("checkpoint.damaged.pt").read_bytes() == data
    resumed.run()
    assert torch.equal(resumed.state()["rng"], whole["rng"])
    assert all(torch.equal(value, whole["model"][name]) for name, value in resumed.state()["model"].items())
    assert [load_checkpoint(file)["step"] for file in (path, previous_of(path))] == [6, 5]


def test_a_damaged_checkpoint_never_takes_the_place_of_the_previous_one(path: Path) -> None:
    save_checkpoint(path, content(2.0))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is used instead"):
        load_latest(path)
    save_checkpoint(path, content(3.0))
    values = [load_checkpoint(file)["model"]["w"][0, 0].item() for file in (path, previous_of(path))]
    assert values == [3.0, 1.0]


def test_another_format_is_refused_though_the_previous_one_could_be_read(path: Path) -> None:
    save_checkpoint(path, content())
    torch.save({"format": "unitary_layers example run", "version": 2}, path)
    with pytest.raises(RuntimeError, match="got format 'unitary_layers example run', version 2") as refusal:
        load_latest(path)
    assert not isinstance(refusal.value, DamagedCheckpoint), "newer work is not thrown away as if it were damaged"
    assert path.exists()


def test_no_truncated_file_is_read(path: Path) -> None:
    data = path.read_bytes()
    for length in range(0, len(data), 11):
        path.write_bytes(data[:length])
        with pytest.raises(RuntimeError, match=REFUSAL):
            load_checkpoint(path)


def test_a_flipped_bit_is_refused_or_without_effect(path: Path) -> None:
    data, whole, effects = path.read_bytes(), load_checkpoint(path), {"refused": 0, "none": 0}
    for place in range(0, len(data), 5):
        path.write_bytes(flipped(data, place, place % 8))
        refusal, got = attempt(path)
        effects["none" if refusal is None else "refused"] += 1
        if refusal is None:
            assert torch.equal(got["model"]["w"], whole["model"]["w"])
            assert got | {"model": None} == whole | {"model": None}
        else:
            assert re.search(REFUSAL, refusal)
    assert min(effects.values()) > 0, effects


def attempt(path: Path) -> tuple[str | None, dict[str, object]]:
    """The message of a refusal, or what was read."""
    try:
        return None, load_checkpoint(path)
    except RuntimeError as error:
        return str(error), {}


@pytest.mark.parametrize(
    ("place", "bit", "match"),
    [
        (8, 0, "encrypted"),  # flags
        (10, 3, "decompressing"),  # method
        (10, 0, "compression method"),
        (38, 4, "marked as a folder"),  # attributes; torch would return the memory as it found it
    ],
)
def test_flipped_bit_in_the_directory_is_refused(path: Path, place: int, bit: int, match: str) -> None:
    data = path.read_bytes()
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/0"))
    path.write_bytes(flipped(data, entry + place, bit))
    with pytest.raises(RuntimeError, match=f"{REFUSAL} .*{match}"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"weights": torch.ones(2)}, "got format None"),
        (torch.ones(2), "got format None"),
        ({"format": "unitary_layers example run", "version": 2}, "version 2"),
        ({"format": "unitary_layers example run", "version": 1, "step": 3}, "got one without config, seconds, model"),
    ],
)
def test_other_files_of_torch_are_refused(path: Path, other: object, match: str) -> None:
    torch.save(other, path)
    with pytest.raises(RuntimeError, match=match):
        load_checkpoint(path)


class Payload:
    """Touches a file when it is unpickled by something that runs what it reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_run_on_loading(path: Path, tmp_path: Path) -> None:
    torch.save(content() | {"config": Payload(tmp_path / "touched")}, path)
    with pytest.raises(RuntimeError, match=REFUSAL):
        load_checkpoint(path)
    assert not (tmp_path / "touched").exists()


def test_a_missing_file_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt")


def test_a_crash_while_saving_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(content: object, file: object) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, content(2.0))
    assert torch.equal(load_checkpoint(path)["model"]["w"], torch.ones(5, 5))

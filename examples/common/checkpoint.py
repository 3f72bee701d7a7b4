"""Checkpoints that are whole or refused: written atomically, checked before they are read, loaded as data only.

A folder holds the last two, checkpoint.pt and checkpoint.previous.pt: where the newest is damaged, a run goes on from
the one before.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

FORMAT = "unitary_layers example run"
VERSION = 1
KEYS = ("config", "step", "seconds", "model", "optimizer", "scheduler", "rng")
MARKS_A_FOLDER = 0x10  # FILE_ATTRIBUTE_DIRECTORY, in the attributes of a zip record
# What zipfile and torch.load raise on damaged data in memory, depending on the bit that is wrong.
UNREADABLE = (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError)


class DamagedCheckpoint(RuntimeError):
    """A file is truncated or corrupt."""


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def holds_checkpoint(path: Path) -> bool:
    """Whether there is something to resume from, at `path` or before it."""
    return path.exists() or previous_of(path).exists()


def remove_checkpoints(path: Path) -> None:
    """Delete the one at `path` and the one before it."""
    for file in (path, previous_of(path)):
        file.unlink(missing_ok=True)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (keys `KEYS`) to `path`, and keep what was there as the previous one.

    Two renames of whole files: a crash at any instant leaves at least one of them whole.
    """
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, "version": VERSION, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        os.replace(path, previous_of(path))
    os.replace(temporary, path)


def load_latest(path: Path) -> dict[str, Any]:
    """Read the checkpoint at `path`, or the previous one where that is damaged or missing.

    A damaged file is renamed, so that the next checkpoint does not put it in the place of the previous one.

    Warns:
        UserWarning: the previous one is used; the message names the file at `path` and what is wrong with it.

    Raises:
        RuntimeError: neither can be read, or the one at `path` is whole and not such a checkpoint.
    """
    try:
        return load_checkpoint(path)
    except (DamagedCheckpoint, FileNotFoundError) as error:
        previous = previous_of(path)
        if not previous.exists():
            raise
        reason = str(error) if path.exists() else f"{path} is missing"
    try:
        content = load_checkpoint(previous)
    except DamagedCheckpoint as error:
        raise DamagedCheckpoint(f"{reason}; nor can the previous one be used: {error}") from error
    warnings.warn(f"{reason}; {previous} is used instead, of step {content['step']}", stacklevel=2)
    with suppress(FileNotFoundError):  # missing from the start, or another rank was faster
        os.replace(path, path.with_name(f"{path.stem}.damaged{path.suffix}"))
    return content


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, with its tensors on the CPU.

    Raises:
        DamagedCheckpoint: the file is truncated or corrupt; the message names it and what is wrong.
        RuntimeError: it is whole and not such a checkpoint.
    """
    expected = f"expected a whole checkpoint ({FORMAT!r}, version {VERSION})"
    data = path.read_bytes()
    try:
        _check_archive(data)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise DamagedCheckpoint(f"{path}: {expected}, got a truncated or corrupt file ({error})") from error
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise RuntimeError(f"{path}: {expected}, got format {found[0]!r}, version {found[1]!r}")
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise RuntimeError(f"{path}: {expected}, got one without {', '.join(missing)}")
    return content


def _check_archive(data: bytes) -> None:
    """Raise one of `UNREADABLE` unless every record of a zip archive has its checksum (torch does not look at them)."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        damaged = archive.testzip()
        # A record marked as a folder is not read by torch, which returns the memory that was to receive it.
        folders = [record.filename for record in archive.infolist() if record.external_attr & MARKS_A_FOLDER]
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    if folders:
        raise zipfile.BadZipFile(f"{folders[0]} is marked as a folder")


def check_config(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to continue a run under another configuration.

    Raises:
        RuntimeError: an option differs; the message lists each with the saved and the wanted value.
    """
    names = sorted(saved.keys() | wanted.keys())
    differing = [name for name in names if saved.get(name) != wanted.get(name)]
    if differing:
        lines = "; ".join(f"{name}: expected {saved.get(name)!r}, got {wanted.get(name)!r}" for name in differing)
        raise RuntimeError(f"{path}: cannot resume with other options than the run was started with ({lines})")

"""Checkpoint files that are cut, damaged or malicious: refused, and nothing that they say is run."""

import ast
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from common.checkpoint import KEYS, load_checkpoint, save_checkpoint
from hostile import TRIED, survived
from torch import nn

import unitary_layers

ROOT = Path(unitary_layers.__file__).parents[1]
NAME = "unirnn_pixel_projunn"
SMALL = {"widths": (4,), "embed_dim": 2, "num_classes": 2}


class Payload:
    """Touches a file when it is unpickled by something that runs what it reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def model() -> nn.Module:
    return timm.create_model(NAME, **SMALL)


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """A checkpoint file with a tensor of one number."""
    path = tmp_path / "whole.pt"
    save_checkpoint(path, dict.fromkeys(KEYS) | {"model": {"w": torch.ones(1)}})
    return path.read_bytes()


def test_a_cut_file_is_refused_at_any_length(tmp_path, whole):
    path = tmp_path / "cut.pt"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert survived("files", lambda: load_checkpoint(path)) is None
    path.write_bytes(whole)
    assert load_checkpoint(path)["model"]["w"] == 1


def test_a_file_with_one_wrong_byte_is_refused_or_says_the_same(tmp_path, whole):
    path = tmp_path / "wrong.pt"
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        content = survived("files", lambda: load_checkpoint(path))
        assert content is None or content["model"]["w"] == 1


LOADERS: dict[str, Callable[[Path], object]] = {
    "load_checkpoint": load_checkpoint,
    "create_model": lambda path: timm.create_model(NAME, checkpoint_path=str(path), **SMALL),
    "timm.models.load_checkpoint": lambda path: timm.models.load_checkpoint(model(), str(path)),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("form", ["bare", "in the model", "in the config", "plain pickle"])
def test_a_malicious_file_runs_nothing(tmp_path, loader, form):
    path, touched = tmp_path / "malicious.pth", tmp_path / "touched"
    payload, state = Payload(touched), model().state_dict()
    content = dict.fromkeys(KEYS) | {"format": "unitary_layers example run", "version": 1, "model": state}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        bad = {"bare": payload, "in the model": content | {"model": state | {"head.fc.bias": payload}}}
        torch.save(bad.get(form, content | {"config": payload}), path)
    TRIED["files"] += 1
    warnings.simplefilter("ignore")  # torch tells of a pickle that is not its own
    with pytest.raises((RuntimeError, pickle.UnpicklingError)):
        loader(path)
    assert not touched.exists()
    pickle.loads(pickle.dumps(payload))  # it would have
    assert touched.exists()


def calls(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The functions that a file calls by name, with their keywords."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [node for node in nodes if isinstance(node.func, (ast.Name, ast.Attribute))]
    return [(ast.unparse(n.func), {str(k.arg): ast.unparse(k.value) for k in n.keywords}) for n in named]


def test_nothing_of_ours_unpickles_code():
    loads = 0
    for path in (*ROOT.glob("unitary_layers/**/*.py"), *ROOT.glob("examples/**/*.py")):
        for name, options in calls(path):
            assert name not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec"), f"{path}: {name}"
            assert name != "torch.load" or options.get("weights_only") == "True", path
            assert name not in ("np.load", "numpy.load") or options.get("allow_pickle", "False") == "False", path
            loads += name == "torch.load"
    assert loads

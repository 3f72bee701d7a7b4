"""Weights that come with the package: found without a network, unitary, and as good as their cards say."""

import inspect
import json
import re
import socket
import sys
from pathlib import Path

import pytest
import timm
import torch
from registered import NAMES
from timm.models import save_for_hf
from timm.models._manipulate import adapt_input_conv

from unitary_layers.models.pretrained import WEIGHTS
from unitary_layers.testing import assert_unitary
from unitary_layers.training import unitary_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import model_card
from common import weights

TAGGED = tuple(sorted(name for name in timm.list_models("*_projunn.*", pretrained=True)))
TRAINED = tuple(name for name in NAMES if timm.is_model_pretrained(name))
every_tag = pytest.mark.parametrize("name", TAGGED)
every_trained_model = pytest.mark.parametrize("name", TRAINED)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args):
        raise AssertionError(f"no network is needed, and there was a connection to {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def images_for(name: str, count: int = 2) -> torch.Tensor:
    size = timm.get_pretrained_cfg(name).input_size
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(0))


def test_files_are_those_of_the_tags_and_small():
    sizes = {path.stem: path.stat().st_size for path in WEIGHTS.glob("*")}
    assert set(sizes) == set(TAGGED)
    assert TAGGED
    assert max(sizes.values()) <= weights.LARGEST
    assert sum(sizes.values()) <= 25e6


@every_tag
def test_the_card_says_how_many_images_of_the_sample_are_named_right(name):
    model = timm.create_model(name, pretrained=True).eval()
    assert_unitary(model)
    assert {weight.parameter.dtype for weight in unitary_weights(model)} == {torch.float32}
    model_name, _, tag = name.partition(".")
    row = model_card.rows_of(model_card.CARDS / f"{model_name}.md")[tag]
    sample = weights.sample_of(weights.set_of(tag))
    if sample is None:
        assert "| not shipped |" in row
        return
    said = re.search(r"\| (\d+) of (\d+) \|", row)
    right, total = weights.count_right(model, sample)
    assert total == int(said[2])
    assert abs(right - int(said[1])) <= 2  # rounding may turn an image that lies between two classes
    assert row.endswith(weights.IMAGES[weights.set_of(tag)])
    assert f"{Path(model.pretrained_cfg['file']).stat().st_size / 1e6:.2f} MB" in row


@every_tag
def test_a_card_has_the_command_and_the_log_of_each_tag(name):
    model_name = name.partition(".")[0]
    card = model_card.CARDS / f"{model_name}.md"
    assert f"(../results/{name}.csv)" in card.read_text()
    assert (model_card.RESULTS / f"{name}.csv").exists()
    assert set(model_card.rows_of(card)) == {n.partition(".")[2] for n in TAGGED if n.startswith(f"{model_name}.")}


@every_trained_model
def test_the_first_tag_is_the_default(name):
    default = timm.get_pretrained_cfg(name).tag
    model, x = timm.create_model(name, pretrained=True).eval(), images_for(name)
    again = timm.create_model(f"{name}.{default}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
    assert not torch.equal(timm.create_model(name).eval()(x), again(x))


@every_trained_model
def test_other_classes_start_anew_and_the_features_stay(name):
    model, x = timm.create_model(name, pretrained=True).eval(), images_for(name)
    for classes, width in ((3, 3), (0, model.head_hidden_size)):
        other = timm.create_model(name, pretrained=True, num_classes=classes).eval()
        with torch.no_grad():
            assert torch.equal(other.forward_features(x), model.forward_features(x))
            assert other(x).shape == (2, width)
    extractor = timm.create_model(name, pretrained=True, features_only=True).eval()
    with torch.no_grad():
        assert torch.equal(extractor(x)[-1], model.forward_features(x))


@every_trained_model
def test_other_channels_are_what_timm_makes_of_them(name):
    """A grey image thrice gives what it gave alone, where the stem is torch's; an orthogonal stem starts anew."""
    is_torchs = timm.get_pretrained_cfg(name).first_conv is not None
    if is_torchs and "base_chans" not in inspect.signature(adapt_input_conv).parameters:
        pytest.skip("this timm adapts stems of three channels alone")
    model, x = timm.create_model(name, pretrained=True).eval(), images_for(name)
    other = timm.create_model(name, pretrained=True, in_chans=3 * x.size(1)).eval()
    assert_unitary(other)
    with torch.no_grad():
        logits, expected = other(x.repeat(1, 3, 1, 1)), model(x)
    assert logits.shape == expected.shape
    assert torch.allclose(logits, expected, atol=1e-3 * float(expected.abs().max())) == is_torchs
    last = model.stages[-1].state_dict()
    assert all(torch.equal(value, last[key]) for key, value in other.stages[-1].state_dict().items())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TRAINED])
def test_a_name_without_weights_says_so(name):
    with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
        timm.create_model(name, pretrained=True, device="meta")


def test_a_saved_configuration_has_no_path_of_this_machine(tmp_path: Path):
    model = timm.create_model(TRAINED[0], pretrained=True)
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert "file" not in json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]


@every_trained_model
def test_a_file_holds_matrices_in_half_precision_and_no_state_of_a_rule(name):
    model = timm.create_model(name, update={"momentum": 0.5})
    state = weights.packed(model)
    assert set(state) <= {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
    assert {value.dtype for value in state.values() if value.ndim > 1} == {torch.float16}
    assert {value.dtype for value in state.values() if value.ndim == 1} == {torch.float32}
    other = timm.create_model(name)
    other.load_state_dict(state)  # nothing is missing
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim > 1).view(-1)[0] = 1e6
    with pytest.raises(ValueError, match="expected numbers that float16 holds, got larger ones in"):
        weights.packed(model)

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
from safetensors.torch import load_file, save_model
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
    assert row.endswith(weights.LICENCES[weights.set_of(tag)])
    assert f"{weights.file_of(name).stat().st_size / 1e6:.2f} MB" in row


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
    is_adapted = timm.get_pretrained_cfg(name).first_conv is not None
    is_adapted &= "base_chans" in inspect.signature(adapt_input_conv).parameters  # else of three channels alone
    model, x = timm.create_model(name, pretrained=True).eval(), images_for(name)
    other = timm.create_model(name, pretrained=True, in_chans=3 * x.size(1)).eval()
    assert_unitary(other)
    with torch.no_grad():
        logits, expected = other(x.repeat(1, 3, 1, 1)), model(x)
    assert logits.shape == expected.shape
    assert torch.allclose(logits, expected, atol=1e-3 * float(expected.abs().max())) == is_adapted
    last = model.stages[-1].state_dict()
    assert all(torch.equal(value, last[key]) for key, value in other.stages[-1].state_dict().items())


def test_a_stem_that_whitens_is_frozen_in_what_was_trained_alone():
    for channels, is_trained in ((3, True), (1, False)):
        model = timm.create_model("stiefelnet_projunn", pretrained=True, in_chans=channels)
        assert model.stem.conv.weight.requires_grad != is_trained


@pytest.mark.parametrize("operators", [False, True])
def test_what_follows_a_stem_of_other_channels_starts_anew(operators, tmp_path):
    layout = {"operators": operators, "depths": (1, 1), "widths": (4, 8)}
    trained = timm.create_model("stiefelnet_projunn", **layout)
    torch.save(trained.state_dict(), tmp_path / "own.pth")
    file = {"file": str(tmp_path / "own.pth")}
    other = timm.create_model("stiefelnet_projunn", **layout, pretrained=True, in_chans=1, pretrained_cfg_overlay=file)
    last = trained.stages[-1].state_dict()
    assert all(torch.equal(value, last[key]) for key, value in other.stages[-1].state_dict().items())
    assert other.eval()(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_other_patches_and_places_are_interpolated_from_the_trained_ones():
    name, x = "orthovit_tiny_projunn", torch.randn(2, 1, 28, 28)
    model = timm.create_model(name, pretrained=True).eval()
    with torch.no_grad():
        larger = timm.create_model(name, pretrained=True, img_size=56).eval()
        assert larger.stem.pos_embed.shape == (1, 128, 14, 14)
        assert torch.allclose(larger(x), model(x), atol=0.1 * float(model(x).abs().max()))
        finer = timm.create_model(name, pretrained=True, patch_size=8, img_size=56).eval()
        twice = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
        assert torch.nn.functional.cosine_similarity(finer(twice), model(x)).min() > 0.9


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


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of those that the script writes into."""
    for folder in ("CARDS", "RESULTS"):
        monkeypatch.setattr(model_card, folder, tmp_path)
    monkeypatch.setattr(weights, "file_of", lambda name: tmp_path / "weights" / f"{name}.safetensors")
    return tmp_path


def finished_run(name: str, folder: Path) -> Path:
    """What the scripts leave of one: the model and the log."""
    folder.mkdir()
    save_model(timm.create_model(name), str(folder / "model.safetensors"))
    (folder / "log.csv").write_text("step,loss\n1,2.3\n")
    return folder


def test_the_script_makes_weights_of_a_run_and_writes_the_card(elsewhere, monkeypatch, capsys):
    name, run = TAGGED[-1], finished_run(TAGGED[-1], elsewhere / "run")
    monkeypatch.setattr(model_card, "measure_weights", lambda *args: "98.00 % of 100 | 9 of 10 | 0.18 MB | MNIST")
    model, _, tag = name.partition(".")
    (elsewhere / f"{model}.md").write_text(f"| `other` | 1 |\n| `{tag}` | - | - | - | - |\n")
    model_card.main([name, "--run", str(run), "--write"])
    assert "not in the card" not in capsys.readouterr().out
    row = "98.00 % of 100 | 9 of 10 | 0.18 MB | MNIST"
    assert (elsewhere / f"{model}.md").read_text() == f"| `other` | 1 |\n| `{tag}` | {row} |\n"
    assert (elsewhere / f"{name}.csv").read_text() == (run / "log.csv").read_text()
    state = load_file(weights.file_of(name))
    trained = load_file(run / "model.safetensors")
    assert all(torch.equal(value, trained[key].to(value.dtype)) for key, value in state.items())


def test_weights_that_are_too_large_or_have_no_tag_are_refused(elsewhere, monkeypatch, capsys):
    name, run = TAGGED[-1], finished_run(TAGGED[-1], elsewhere / "run")
    monkeypatch.setattr(weights, "LARGEST", 1e5)
    with pytest.raises(ValueError, match=rf"expected at most 0 MB, got 0.2 MB for {name}"):
        weights.write_weights(name, run)
    with pytest.raises(SystemExit):
        model_card.main([name.partition(".")[0], "--run", str(run)])
    assert "--run needs one NAME.TAG" in capsys.readouterr().err
    assert not (elsewhere / "weights").exists()

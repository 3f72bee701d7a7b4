"""Every registered model has a card, whose numbers are those of the model and whose code runs."""

import re
import sys
from pathlib import Path

import pytest
import torch
from registered import NAMES

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import model_card


def test_one_card_a_name_and_no_other():
    assert {path.stem for path in model_card.CARDS.glob("*.md")} == set(NAMES) == set(model_card.registered())


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_model(name):
    found = model_card.read(model_card.CARDS / f"{name}.md")
    assert tuple(found) == model_card.LINES
    assert found == model_card.measure(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_has_its_parts_and_its_code_runs(name, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    text = (model_card.CARDS / f"{name}.md").read_text()
    assert re.match(r"---\ntags:\n(- [\w-]+\n)+library_name: timm\nlicense: apache-2.0\n---\n", text)
    assert f"# Model card for {name}\n" in text
    for part in ("Model Details", "Model Usage", "Results", "Citation"):
        assert f"\n## {part}\n" in text
    for script in re.findall(r"examples/\w+\.py", text):
        assert (model_card.CARDS.parent / script).exists()
    assert "RESULTS" not in text
    snippets = "".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    exec(compile(snippets, f"{name}.md", "exec"), {})
    promised = re.findall(r"# +(torch\.Size\(.*?\))", text)
    assert capsys.readouterr().out.splitlines() == promised


def test_complex_products_count_four_times():
    a = torch.empty(2, 3, 4, dtype=torch.complex64)
    assert model_card._bmm_flop(a, a.mT) == 4 * model_card._bmm_flop(a.real, a.real.mT) == 4 * 2 * (2 * 3 * 4 * 3)


def test_the_script_tells_where_a_card_is_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    name = "orthoplain100_projunn"
    text = (model_card.CARDS / f"{name}.md").read_text()
    (tmp_path / f"{name}.md").write_text(re.sub(r"Params \(M\): .*", "Params (M): 1", text))
    monkeypatch.setattr(model_card, "CARDS", tmp_path)
    model_card.main([name])
    assert "(not in the card)" in capsys.readouterr().out
    model_card.main([name, "--write"])
    assert "(not in the card)" not in capsys.readouterr().out
    assert (tmp_path / f"{name}.md").read_text() == text

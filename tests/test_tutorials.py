"""The tutorials run as they stand, and were committed as one whole run left them."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest

TUTORIALS = sorted((Path(__file__).parent.parent / "docs" / "tutorials").glob("*.ipynb"))
OUTPUTS = {"stream": "stdout", "display_data": None, "execute_result": None}  # no error, and nothing on stderr
PATH = re.compile(
    r"(?<![\w.])(?:/(?:home|root|tmp|usr|opt|mnt|work|workspace|Users|private)/|[A-Za-z]:\\)|site-packages"
)

each_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def source(cell: dict[str, Any]) -> str:
    """The text of a cell, which a notebook keeps as one string or as a list of lines."""
    return "".join(cell["source"])


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def texts(outputs: list[dict[str, Any]]) -> str:
    """What the outputs of a cell say, without the pictures."""
    parts = [part for output in outputs for kind, part in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join("".join(part) for part in [*parts, *(output.get("text", "") for output in outputs)])


def test_there_are_tutorials():
    assert {path.stem for path in TUTORIALS} >= {"long-memory", "certified-images", "words"}


@pytest.mark.slow
@each_tutorial
def test_tutorial_runs(path, monkeypatch):
    monkeypatch.setenv("UNITARY_LAYERS_QUICK", "1")
    backend = matplotlib.get_backend()
    plt.switch_backend("agg")
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        with matplotlib.rc_context():
            for number, cell in enumerate(code_cells(path), start=1):
                exec(compile(source(cell), f"{path.name}, code cell {number}", "exec"), names)
                for figure in map(plt.figure, plt.get_fignums()):
                    figure.canvas.draw()
                plt.close("all")
    finally:
        plt.close("all")
        plt.switch_backend(backend)
    assert names["QUICK"] is True


@each_tutorial
def test_notebook_is_of_format_4(path):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    assert notebook["nbformat_minor"] >= 5  # cells have ids
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        needed = {"id", "cell_type", "metadata", "source"}
        needed |= {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert set(cell) == needed
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert source(notebook["cells"][0]).startswith("# ")


@each_tutorial
def test_outputs_are_of_one_run_in_order(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    for output in outputs:
        assert output["output_type"] in OUTPUTS, output
        assert output.get("name") == OUTPUTS[output["output_type"]], output
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    assert all(base64.b64decode("".join(picture)).startswith(b"\x89PNG") for picture in pictures)
    for cell in cells:
        if "print(" in source(cell) and "def " not in source(cell):
            assert texts(cell["outputs"]).strip(), source(cell)


@each_tutorial
def test_outputs_tell_nothing_of_the_machine(path):
    for cell in code_cells(path):
        assert PATH.search(texts(cell["outputs"])) is None
    assert path.stat().st_size < 250_000

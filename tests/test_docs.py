"""What the README, the pages of docs/ and the docstrings show runs as it stands, and the reference has every name."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import textwrap
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import timm

import unitary_layers
from unitary_layers.testing import assert_unitary

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted(m.name for m in pkgutil.walk_packages(unitary_layers.__path__, "unitary_layers."))
# What imports a name from here has it from the door of a package; a name has one place in the reference.
DOORS = ("", ".init", ".linalg", ".projunn", ".training", ".layers", ".robust", ".models", ".testing")
# A block of any other language could be one that was meant to run.
LANGUAGES = {"python", "text", "sh", "toml", "yaml", "bibtex"}
VALUE = r"(?:True|False|\d+|torch\.\w+(?:\(\[[\d, ]+\]\))?)"
PRINTED = re.compile(rf"^( *)print\((.+)\)  # ({VALUE}(?: {VALUE})*)$", re.MULTILINE)
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run:(.*?)-->\s*\Z", re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    language: str
    code: str
    not_run: str | None  # the reason, of one that says so


def blocks_of(text: str) -> list[Block]:
    found = []
    for fence in FENCE.finditer(text):
        reason = NOT_RUN.search(text, 0, fence.start())
        info = fence[2].strip().partition(" ")[0]
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Block(line, info, textwrap.dedent(fence[3]), None if reason is None else reason[1].strip()))
    return found


def lacking(page: Path) -> list[str]:
    """Other packages that a page of a recipe says it needs and that are not there."""
    needed = re.findall(r"<!-- needs: (\w+) -->", page.read_text())
    return [name for name in needed if importlib.util.find_spec(name) is None]


def assert_prints(expected: str, *values: object) -> None:
    assert " ".join(map(str, values)) == expected


def run(page: Path) -> dict[str, object]:
    """Runs the blocks of a page in order, in one namespace, which is returned.

    Where a comment behind a print is plainly what it prints, it has to be so.
    """
    names: dict[str, object] = {"__name__": "__main__", "assert_prints": assert_prints}
    for block in blocks_of(page.read_text()):
        if block.language == "python" and block.not_run is None:
            code = "\n" * block.line + block.code  # so that a traceback has the line of the page
            code = PRINTED.sub(r'\1assert_prints("\3", \2)', code)
            exec(compile(code, str(page.relative_to(ROOT)), "exec"), names)
    return names


def with_python(pages: list[Path]) -> list[Path]:
    return [page for page in pages if any(block.language == "python" for block in blocks_of(page.read_text()))]


@pytest.mark.parametrize("page", with_python(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a reader's folder is not this one
    if missing := lacking(page):
        pytest.skip(f"needs {', '.join(missing)}: pip install 'unitary_layers[integrations]'")
    with warnings.catch_warnings():
        if "<!-- needs: " in page.read_text():  # other packages may warn as they like, ours may not
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", ".*unitary weight")
        names = run(page)
    if page == README:
        layers = [value for value in names.values() if isinstance(value, unitary_layers.UnitaryMethods)]
        assert layers, "the README shows a layer or model"
        for layer in layers:
            assert_unitary(layer)


def test_blocks_have_a_language_and_a_reason_not_to_run():
    for page in PAGES:
        where, text = page.relative_to(ROOT), page.read_text()
        for block in blocks_of(text):
            assert block.language in LANGUAGES, f"{where}:{block.line}: expected one of {sorted(LANGUAGES)}"
            assert block.not_run is None or block.language == "python", f"{where}:{block.line}: would not run anyway"
            assert block.not_run != "", f"{where}:{block.line}: no reason is given"
        said = [block for block in blocks_of(text) if block.not_run is not None]
        assert len(said) == text.count("<!-- not run"), f"{where}: 'not run' stands directly before a block of python"


def test_blocks_are_seen():
    text = "a\n```python\nx = 1\n```\n"
    text += "<!-- not run: needs a GPU -->\n\n    ```python\n    y = 2\n    ```\n```sh\nls\n```\n"
    assert blocks_of(text) == [
        Block(2, "python", "x = 1\n", None),
        Block(7, "python", "y = 2\n", "needs a GPU"),
        Block(10, "sh", "ls\n", None),
    ]


def test_what_is_printed_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 < 2, 3)  # True 3\nprint(0.1)  # about 1\n```\n")
    run(page)
    page.write_text("```python\nprint(1 < 2)  # False\n```\n")
    with pytest.raises(AssertionError):
        run(page)


def test_notes_that_the_code_refers_to_are_in_it():
    text = "\n".join(path.read_text() for path in Path(unitary_layers.__file__).parent.rglob("*.py"))
    notes = re.findall(r"^# Note \[(.+?)\]$", text, re.MULTILINE)
    assert len(set(notes)) == len(notes) > 10
    joined = re.sub(r"\n\s*(?:# )?", " ", text)  # a reference may go on in the next line
    assert set(re.findall(r"Note \[([^\]]+)\]", joined)) == set(notes)


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 900


def test_the_citation_is_of_this_version():
    versions = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert versions == [unitary_layers.__version__]


def test_the_catalogue_has_every_layer_and_every_model_once():
    spec = importlib.util.spec_from_file_location("catalogue", ROOT / "docs" / "_hooks" / "catalogue.py")
    catalogue = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(catalogue)
    catalogue.LAYERS = Path(unitary_layers.layers.__file__).parent  # which may be installed, away from the pages
    layers = [n for n, v in vars(unitary_layers.layers).items() if inspect.isclass(v) and n not in catalogue.BASES]
    names = timm.list_models("*_projunn")
    for listed, rows in ((layers, catalogue.layers()), (names, catalogue.models())):
        assert sorted(re.findall(r"^\| \[`(\w+)`\]", rows, re.MULTILINE)) == sorted(listed)
    for tagged in timm.list_models("*_projunn.*", pretrained=True):
        name, _, tag = tagged.partition(".")
        assert re.search(rf"^\| \[`{name}`\].*`{tag}`: \d", catalogue.models(), re.MULTILINE), tagged
    page = (ROOT / "docs" / "zoo" / "index.md").read_text()
    assert page.count("<!-- layers -->") == page.count("<!-- models -->") == 1


def messages() -> list[str]:
    """All texts of the package, with an ellipsis for what is filled in."""
    found = []
    for path in Path(unitary_layers.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts))
    return found


def test_messages_that_troubleshooting_explains_are_in_the_code():
    of_torch = (
        "size mismatch for weight",
        'Missing key(s) in state_dict: "activations.0.bias"',
        'Unexpected key(s) in state_dict: … "weight_count"',
    )
    headings = re.findall(r"^### `(.+)`$", (ROOT / "docs/guides/troubleshooting.md").read_text(), re.MULTILINE)
    texts = messages()
    assert len(headings) > 30
    for heading in set(headings) - set(of_torch):
        parts = heading.replace("OrthogonalConv2d", "…").split("…")
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in parts), re.DOTALL)
        assert any(map(pattern.search, texts)), heading


def test_files_that_the_readme_names_exist():
    text = README.read_text()
    for path in re.findall(r"(?:examples|docs)/[\w/-]+\.(?:py|md|ipynb)", text):
        assert (ROOT / path).exists(), path
    package = Path(unitary_layers.__file__).parent
    for path in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        folders = (package, package / "projunn", ROOT / "examples", ROOT)
        assert any((folder / path).exists() for folder in folders), path


@pytest.mark.parametrize("name", ["unitary_layers", *MODULES])
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    names = {"torch": __import__("torch"), **vars(unitary_layers), **vars(module)}
    result = doctest.testmod(module, extraglobs=names, verbose=False)
    assert result.failed == 0


def at_the_doors() -> dict[int, str]:
    """The functions and classes that packages offer, by identity, with a name of each."""
    found: dict[int, str] = {}
    for door in DOORS:
        module = importlib.import_module(f"unitary_layers{door}")
        for name, value in vars(module).items():
            is_ours = getattr(value, "__module__", "").startswith("unitary_layers")
            is_from_here = not hasattr(module, "__path__") and getattr(value, "__module__", "") == module.__name__
            is_definition = inspect.isclass(value) or inspect.isfunction(value)
            if not name.startswith("_") and is_definition and is_ours and (hasattr(module, "__path__") or is_from_here):
                found.setdefault(id(value), f"{module.__name__}.{name}")
    return found


def test_the_reference_has_every_public_name_once():
    pages = {page: page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md")}
    paths = [path for text in pages.values() for path in re.findall(r"^::: (\S+)", text, re.MULTILINE)]
    objects = Counter(id(_resolved(path)) for path in paths)
    offered = at_the_doors()
    assert [name for key, name in offered.items() if key not in objects] == [], "not in the reference"
    assert [path for path in paths if id(_resolved(path)) not in offered] == [], "not public"
    assert [path for path in paths if objects[id(_resolved(path))] > 1] == [], "more than once"


def test_the_doors_are_seen():
    names = set(at_the_doors().values())
    assert {"unitary_layers.attach", "unitary_layers.init.haar_", "unitary_layers.training.ThinProducts"} <= names
    assert "unitary_layers.testing.assert_unitary" in names
    assert "unitary_layers.testing.unitarity_error" not in names


def _resolved(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)

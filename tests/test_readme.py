"""What the README and the docstrings show runs as it stands."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import unitary_layers

README = Path(__file__).parent.parent / "README.md"
MODULES = sorted(m.name for m in pkgutil.walk_packages(unitary_layers.__path__, "unitary_layers."))


def test_snippets_of_the_readme_run_in_order(capsys):
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(snippets) == README.read_text().count("```python") >= 3
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    error = float(capsys.readouterr().out.split()[0])
    assert error < 1e-4


def test_files_that_the_readme_names_exist():
    text = README.read_text()
    for script in re.findall(r"examples/[\w/]+\.py", text):
        assert (README.parent / script).exists(), script
    package = Path(unitary_layers.__file__).parent
    for path in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        folders = (package, package / "projunn", README.parent / "examples")
        assert any((folder / path).exists() for folder in folders), path


@pytest.mark.parametrize("name", ["unitary_layers", *MODULES])
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    names = {"torch": __import__("torch"), **vars(unitary_layers), **vars(module)}
    result = doctest.testmod(module, extraglobs=names, verbose=False)
    assert result.failed == 0

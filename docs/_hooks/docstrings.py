"""Docstrings as Markdown: what they have of reStructuredText, and the sections that griffe does not know."""

import logging
import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

from notes import anchor, notes

LOG = logging.getLogger("mkdocs.hooks.docstrings")  # its warnings make --strict fail
REFERENCE = Path(__file__).parents[1] / "reference"
ROLE = re.compile(r":(?:func|class|meth|attr|mod):`~?([\w.]+)`")
NOTE = re.compile(r"\bNote\s+\[([^\]]+)\]")
MATH = re.compile(r"^( *)\.\. math:: (.+)$", re.MULTILINE)
LITERAL = re.compile(r" ?::$", re.MULTILINE)
SECTION = re.compile(r"^(Inputs|Outputs|Shape):\n((?:    .*\n?|\n(?=    ))+)", re.MULTILINE)


def documented() -> dict[str, str]:
    """The objects that have a place in the reference, by their last names."""
    paths = [path for page in REFERENCE.glob("*.md") for path in re.findall(r"^::: ([\w.]+)", page.read_text(), re.M)]
    return {path.rpartition(".")[2]: path for path in paths}


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def __init__(self) -> None:
        self.places, self.notes = documented(), notes()

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each object of the package."""
        if obj.docstring is not None:
            obj.docstring.value = self.markdown(obj.docstring.value)

    def markdown(self, text: str) -> str:
        text = ROLE.sub(self._reference, text)
        text = NOTE.sub(self._note, text)
        text = MATH.sub(r"\1$$\2$$", text)
        text = LITERAL.sub(":", text)
        text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
        return SECTION.sub(_section, text)

    def _reference(self, found: re.Match[str]) -> str:
        name = found[1].rpartition(".")[2]
        return f"[`{name}`][{self.places[name]}]" if name in self.places else f"`{found[1]}`"

    def _note(self, found: re.Match[str]) -> str:
        name = re.sub(r"\s+", " ", found[1])
        if name not in self.notes:
            LOG.warning("a docstring refers to Note [%s], which is not in the code", name)
        return f"Note [{name}][{anchor(name)}]"


def _section(found: re.Match[str]) -> str:
    """A section of named items as a list, any other as a paragraph."""
    lines = found[2].rstrip().splitlines()
    body = "\n".join(line[4:] for line in lines)
    if found[1] != "Shape":
        body = re.sub(r"^(\w+): ", r"- `\1`: ", body, flags=re.MULTILINE)
    return f"**{found[1]}:**\n\n{body}\n"

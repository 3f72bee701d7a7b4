"""The page of the notes that the code refers to as "Note [Name]", made from its comments."""

import re
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "unitary_layers"
PAGE, PLACE = "reference/notes.md", "<!-- notes -->"
NOTE = re.compile(r"^# Note \[(.+)\]\n((?:#.*\n)+)", re.MULTILINE)
STOREYS = ("linalg", "projunn", "training", "layers", "models")


def anchor(name: str) -> str:
    """The identifier of the heading of a note."""
    return "note-" + re.sub(r"\W+", "-", name.lower()).strip("-")


def notes() -> dict[str, tuple[str, str]]:
    """Of each note the file that it is in and its text, by its name, from the ground of the package up."""
    paths = sorted(PACKAGE.rglob("*.py"), key=lambda p: (STOREYS.index(s) if (s := storey(p)) in STOREYS else 9, p))
    found = {}
    for path in paths:
        for name, comment in NOTE.findall(path.read_text()):
            found[name] = (path.relative_to(PACKAGE.parent).as_posix(), re.sub(r"^# ?", "", comment, flags=re.M))
    return found


def storey(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def as_markdown(text: str) -> str:
    """A comment as Markdown: its lines as they are, of which indented ones are code."""
    lines, was_code = [], False
    for line in text.splitlines():
        is_code = line.startswith("    ")
        lines += [""] if is_code != was_code else []
        lines.append(line if is_code else escaped(line))
        was_code = is_code
    return "\n".join(lines)


def escaped(line: str) -> str:
    """Text in which nothing but code between backticks is markup."""
    parts = re.split(r"(`+[^`]+`+)", line)
    return "".join(part if i % 2 else re.sub(r"([\\*_\[\]<>$#])", r"\\\1", part) for i, part in enumerate(parts))


def on_page_markdown(markdown: str, /, *, page: Any, **_: Any) -> str:
    """Fills the page of the notes."""
    if page.file.src_uri != PAGE:
        return markdown
    parts = [
        f"## {name} {{ #{anchor(name)} }}\n\n`{path}`\n\n{as_markdown(text)}" for name, (path, text) in notes().items()
    ]
    return markdown.replace(PLACE, "\n\n".join(parts))

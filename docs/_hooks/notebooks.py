"""Notebooks become pages as they were committed: nothing is run, and their links and formulas are those of any page."""

import base64
import html
import json
import re
from typing import Any

from mkdocs.structure.files import File, Files

PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of a terminal


def on_files(files: Files, /, *, config: Any) -> Files:
    """Puts a page and its pictures beside each notebook, which stays to be downloaded."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        stem = file.src_uri.removesuffix(".ipynb")
        markdown, pictures = page_of(json.loads(file.content_string), stem.rpartition("/")[2])
        files.append(File.generated(config, f"{stem}.md", content=markdown))
        for name, content in pictures.items():
            files.append(File.generated(config, f"{stem.rpartition('/')[0]}/{name}", content=content))
    return files


def page_of(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """The Markdown of a notebook, and its pictures by the names that the page knows them by."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(fenced(source, "python"))
            parts += [output_of(output, stem, pictures) for output in cell.get("outputs", ())]
    # An HTML link, since mkdocs takes one of Markdown to a notebook for one to its page.
    parts.append(f'<p><a href="{stem}.ipynb" download>Download this page as a notebook</a></p>')
    return "\n\n".join(part for part in parts if part), pictures


def output_of(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> str:
    """What a cell has left, as Markdown; a picture is added to those given."""
    if output["output_type"] == "stream":
        return shown("".join(output["text"]))
    if output["output_type"] == "error":
        return shown(f"{output['ename']}: {output['evalue']}")
    data = {kind: "".join(value) for kind, value in output["data"].items() if isinstance(value, (str, list))}
    for kind, suffix in PICTURES.items():
        if kind in data:
            name = f"{stem}_{len(pictures) + 1}.{suffix}"
            pictures[name] = data[kind].encode() if suffix == "svg" else base64.b64decode(data[kind])
            return f"![{html.escape(data.get('text/plain', 'Figure'))}]({name})".replace("<", "").replace(">", "")
    if "text/html" in data:
        return f'<div class="output" markdown="0">{data["text/html"]}</div>'
    return data.get("text/markdown") or shown(data.get("text/plain", ""))


def shown(text: str) -> str:
    """The text that a cell has printed."""
    text = COLOURS.sub("", text).rstrip()
    return fenced(text, "text { .output }") if text else ""


def fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    language = language if "{" not in language else "{ ." + language.replace(" {", "").strip()
    return f"{fence}{language}\n{text}\n{fence}"

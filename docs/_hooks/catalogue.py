"""The tables of all layers and of all models in the zoo, made from the reference, docstrings and model cards."""

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LAYERS = ROOT / "unitary_layers" / "layers"  # read, not imported
PAGE = "zoo/index.md"
BASES = {"UnitaryMethods", "UnitaryModule"}  # of layers, and no layers themselves


def layers() -> str:
    """A row for each class of the reference of layers: its name, and the first line of its docstring."""
    listed = re.findall(r"^::: unitary_layers\.(\w+)$", (ROOT / "docs/reference/layers.md").read_text(), re.MULTILINE)
    purposes = {}
    for path in LAYERS.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                purposes[node.name] = (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")
    rows = [
        f"| [`{name}`](../reference/layers.md#unitary_layers.{name}) | {purposes[name].replace('``', '`')} |"
        for name in listed
        if name in purposes and name not in BASES
    ]
    return "\n".join(["| layer | what it is |", "|---|---|", *rows])


def models() -> str:
    """A row for each model card: size, image, and what its trained weights reach."""
    rows = []
    for path in sorted(ROOT.glob("model_cards/*.md")):
        card = path.read_text()
        params, image = (
            re.search(rf"^\s*- {re.escape(n)}: (.+)$", card, re.M)[1] for n in ("Params (M)", "Image size")
        )
        weights = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", card, re.MULTILINE)
        reached = "<br>".join(f"`{tag}`: {right}" for tag, right in weights) or "none shipped"
        rows.append(f"| [`{path.stem}`](../../model_cards/{path.name}) | {params} M | {image} | {reached} |")
    head = "| model | parameters | image | weights: test images named right |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def on_page_markdown(markdown: str, /, *, page: Any, **_: Any) -> str:
    """Fills the tables of the zoo."""
    if page.file.src_uri != PAGE:
        return markdown
    return markdown.replace("<!-- layers -->", layers()).replace("<!-- models -->", models())

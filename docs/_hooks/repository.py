"""Pages made from files outside docs/, and links from any page to any file of the repository.

A link in the sources is one that works in a checkout: ``results/demo.png`` in README.md, ``../../examples/demo.py`` in
a guide. Here it becomes the place of that file in the site; what is neither a page nor a part of docs/ is copied there.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "index.md": "README.md",
    "examples.md": "examples/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
CODE = re.compile(r"(^ *(`{3,}).*?^ *\2 *$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r'(\]\(|(?:src|href)="|^\[[^\]]+\]: )([^()\s"]+)', re.MULTILINE)
FOLDER = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^()\s]+)\)")


def on_files(files: Files, /, *, config: Any) -> Files:
    """Adds the pages that are made from files outside docs/."""
    cards = {f"model-cards/{path.name}": f"model_cards/{path.name}" for path in ROOT.glob("model_cards/*.md")}
    for uri, source in (PAGES | cards).items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, /, *, page: Any, config: Any, files: Files) -> str:
    """Rewrites the links of a page, and adds the files that they lead to."""
    uri = page.file.src_uri
    source = PAGES.get(uri) or (uri.replace("model-cards/", "model_cards/") if "model-cards/" in uri else f"docs/{uri}")

    def target_of(link: str) -> str | None:
        """The file or folder of the repository that a link leads to; None for other links."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link.partition("#")[0]))
        return path if link[0] not in "#/" and path[:2] != ".." and (ROOT / path).exists() else None

    def without_folder(found: re.Match[str]) -> str:
        target = target_of(found[2])
        return found[1] if target is not None and (ROOT / target).is_dir() else found[0]

    def rewritten(found: re.Match[str]) -> str:
        target = target_of(found[2])
        if target is None:
            return found[0]
        place = site_uri(target)
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / target)))
        if '="' in found[1]:  # mkdocs rewrites the links of Markdown, not those of HTML
            place = place.removesuffix(".md") + ".html" if place.endswith(".md") else place
        _, mark, anchor = found[2].partition("#")
        return found[1] + posixpath.relpath(place, posixpath.dirname(uri) or ".") + mark + anchor

    return outside_code(markdown, lambda text: LINK.sub(rewritten, FOLDER.sub(without_folder, text)))


def site_uri(path: str) -> str:
    """The place in the site of a file of the repository."""
    for uri, source in PAGES.items():
        if path == source:
            return uri
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    return path.replace("model_cards/", "model-cards/") if path.startswith("model_cards/") else f"repository/{path}"


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Markdown with a change of all that is not in a block or span of code."""
    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])

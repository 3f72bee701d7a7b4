"""What must hold of every page of the built site: links and pictures lead somewhere, and no markup is left raw.

mkdocs looks at the links that are written in Markdown; this looks at all of the HTML.
"""

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LOG = logging.getLogger("mkdocs.hooks.check")  # its warnings make --strict fail
UNSEEN = {"code", "pre", "script", "style", "math", "svg", "nav"}
RAW = re.compile(r":(?:func|class|meth|attr|mod):|\.\. math::|\\[(\[]|\$\$|``|\]\(|\]\[|\{ ?[.#]|^:::", re.MULTILINE)
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("source", "src"), ("iframe", "src")}


class Page(HTMLParser):
    """The identifiers, links and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str, str]] = []
        self.seen: list[str] = []
        self._depth: dict[str, int] = dict.fromkeys(UNSEEN, 0)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in UNSEEN:
            self._depth[tag] += 1
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            if name in ("src", "href") and value:
                self.links.append((tag, name, value))

    def handle_endtag(self, tag: str) -> None:
        if tag in UNSEEN:
            self._depth[tag] -= 1

    def handle_data(self, data: str) -> None:
        if not any(self._depth.values()):
            self.seen.append(data)


def on_post_build(*, config: Any) -> None:
    """Warns of each fault."""
    site = Path(config.site_dir)
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for raw in {found[0] for text in page.seen for found in RAW.finditer(text)}:
            LOG.warning("%s: raw markup %r", path.relative_to(site), raw)
        for tag, name, link in page.links:
            fault = _fault(tag, name, link, path, pages)
            if fault and path.name != "404.html":  # whose links are from the root, wherever it is shown
                LOG.warning("%s: %s", path.relative_to(site), fault)


def _fault(tag: str, name: str, link: str, path: Path, pages: dict[Path, Page]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        is_loaded = (tag, name) in LOADED and parts.scheme != "data"
        return f"{tag} loads {link} from the network" if is_loaded else None
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.exists():
        return f"{tag} leads to {link}, which is not there"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].ids:
        return f"{tag} leads to {link}, which has no such anchor"
    return None

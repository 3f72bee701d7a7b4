"""Formulas become MathML when the site is built, so that its pages need no script and no network to show them."""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# What pymdownx.arithmatex leaves with ``generic: true``.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>([.,:;?!)]*)', re.DOTALL)


def mathml(latex: str, *, block: bool) -> str:
    """The MathML of a formula.

    Raises:
        ValueError: for a command that latex2mathml does not know, which it would print as it stands.
    """
    converted = convert(latex.strip(), display="block" if block else "inline")
    unknown = re.findall(r"\\[A-Za-z]+", html.unescape(converted))
    if unknown:
        raise ValueError(f"unknown commands {unknown} in the formula {latex.strip()!r}")
    return converted


def on_page_content(content: str, /, *, page: Any, **_: Any) -> str:
    """Called by mkdocs with the HTML of a page, docstrings included."""

    def replaced(found: re.Match[str]) -> str:
        try:
            converted = mathml(html.unescape(found[3]), block=found[2] == "[")
        except ValueError as error:
            raise PluginError(f"{page.file.src_uri}: {error}") from error
        # No line begins with the punctuation after a formula.
        return f'<span class="nobreak">{converted}{found[4]}</span>' if found[4] else converted

    return FORMULA.sub(replaced, content)

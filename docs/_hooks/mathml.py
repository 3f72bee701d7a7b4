"""Formulas become MathML when the site is built, so that its pages need no script and no network to show them."""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# What pymdownx.arithmatex leaves with ``generic: true``.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>([.,:;?!)]*)', re.DOTALL)
# What latex2mathml does not know, or has as signs that grow with what is beside them, and the same in its words.
WORDS = {r"\lvert": "|", r"\rvert": "|", r"\lVert": r"\|", r"\rVert": r"\|", "{aligned}": "{split}"}
BAR = re.compile(r'<mo(?: fence="false")? stretchy="false">(&#x0007C;|&#x02016;)</mo>')  # without an operator's space


def mathml(latex: str, *, block: bool) -> str:
    """The MathML of a formula.

    Raises:
        ValueError: for a command or an environment that latex2mathml does not know, which it would print as it stands.
    """
    for word, known in WORDS.items():
        latex = latex.replace(word, known)
    converted = convert(latex.strip(), display="block" if block else "inline")
    unknown = re.findall(r"\\[A-Za-z]+|<mi>&</mi>", html.unescape(converted.replace("&#x00026;", "")))
    if unknown:
        raise ValueError(f"unknown commands {unknown} in the formula {latex.strip()!r}")
    return BAR.sub(r'<mo lspace="0" rspace="0" stretchy="false">\1</mo>', converted)


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

"""Formulas become MathML while the site is built, so that a page needs no script and no network to show them."""

import html
import re
from typing import Any

from latex2mathml import converter
from mkdocs.exceptions import PluginError

_FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)


def on_page_content(page_html: str, /, page: Any, **_: Any) -> str:
    """Replaces what `pymdownx.arithmatex` marked; an event of MkDocs."""
    return _FORMULA.sub(lambda found: _rendered(found, page.file.src_uri), page_html)


def _rendered(found: re.Match, where: str) -> str:
    latex = html.unescape(found["latex"]).strip()
    display = "block" if found["tag"] == "div" else "inline"
    try:
        formula = converter.convert(latex, display=display)
    except Exception as error:  # of many kinds
        raise PluginError(f"{where}: formula {latex!r} cannot be read: {error!r}") from None
    if "\\" in formula or "<mi>&</mi>" in formula:  # what the converter does not know it leaves as it is
        raise PluginError(f"{where}: formula {latex!r} holds a command that latex2mathml does not know")
    return f'<{found["tag"]} class="arithmatex">{formula}</{found["tag"]}>'

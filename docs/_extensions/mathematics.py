"""Formulas become MathML while the site is built, so that a page needs no script and no network to show them."""

from typing import Any

from docutils import nodes
from latex2mathml import converter
from sphinx.application import Sphinx
from sphinx.errors import SphinxError


def setup(app: Sphinx) -> dict[str, Any]:
    """Names the renderer; an entry point of Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_rendered(node, "inline"))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{_rendered(node, "block")}</div>\n')
    raise nodes.SkipNode


def _rendered(node: nodes.Element, display: str) -> str:
    latex = node.astext()
    try:
        formula = converter.convert(latex, display=display)
    except Exception as error:  # of many kinds
        raise SphinxError(f"{node.source}: formula {latex!r} cannot be read: {error!r}") from None
    if "\\" in formula or "<mi>&</mi>" in formula:  # what the converter does not know it leaves as it is
        raise SphinxError(f"{node.source}: formula {latex!r} holds a command that latex2mathml does not know")
    return formula

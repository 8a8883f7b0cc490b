"""What our HTML files share: one file with everything in it, no network, light and dark.

Whatever comes from data goes through `text`; images become addresses that hold their bytes.
"""

import base64
import html
import io
from collections.abc import Iterable

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; --bar: #5b8def; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1.2rem; }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
p.counts { color: var(--soft); margin: .2rem 0 0; }
table { border-collapse: collapse; font-size: .85rem; }
td, th { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""
# Nothing may be loaded from anywhere, whatever slipped through.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, style: str, body: Iterable[str], *, mark: str = "") -> str:
    """A whole page.

    Args:
      title: plain text.
      style: CSS rules that come after those all pages share.
      body: pieces of HTML.
      mark: a comment near the top of the file, by which its writer knows it again.
    """
    comment = [f"<!-- {text(mark)} -->"] if mark else []
    head = [
        "<!DOCTYPE html>",
        *comment,
        f'<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}{style}</style></head><body>",
    ]
    return "\n".join([*head, *body, "</body></html>", ""])


def text(value: object) -> str:
    """Escapes; half surrogate pairs, which UTF-8 cannot hold, are spelt out."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file; `kind` as Pillow calls it, "PNG", "JPEG" or "WEBP"."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """An address that is the image itself; `kind` as for `encoded`."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode('ascii')}"

"""Docstrings as this package writes them: plain text with names in backticks, and sections as Google has them."""

import re
from collections.abc import Iterator

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
_HEAD = re.compile(rf"^({'|'.join(SECTIONS)}):$", re.MULTILINE)


def sections(text: str) -> Iterator[tuple[str, str]]:
    """(heading, what stands below it); the text before the first heading has none: ""."""
    start, title = 0, ""
    for found in _HEAD.finditer(text):
        yield title, text[start : found.start()].strip("\n")
        start, title = found.end(), found[1]
    yield title, text[start:].strip("\n")


def entries(section: str) -> Iterator[tuple[str, str]]:
    """(names, text) of a section's entries; one entry may be about several names, "low, high"."""
    for entry in filter(None, re.split(r"\n?^  (?=\S)", section, flags=re.MULTILINE)):
        names, _, text = entry.partition(":")
        yield names.strip(), " ".join(text.split())


def to_markdown(text: str) -> str:
    """Paragraphs as text, indented ones and small tables as code."""
    return "\n\n".join(map(_block, _blocks(text)))


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs; indented ones that follow each other are one."""
    waiting = ""
    for block in filter(None, re.split(r"\n\s*\n", text.strip("\n"))):
        if waiting and block.startswith("    "):
            waiting += f"\n\n{block}"
            continue
        if waiting:
            yield waiting
        waiting = block
        if not block.startswith("    "):
            yield waiting
            waiting = ""
    if waiting:
        yield waiting


def _block(block: str) -> str:
    if block.startswith("    ") or re.search(r"\S {3,}\S", block):
        return f"```text\n{block}\n```"
    return escaped(block)


def escaped(text: str) -> str:
    """Text that Markdown is to show as it is; what stands in backticks is code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part[:1] == "`" else re.sub(r"([*_<\[\]|\\$#~{}])", r"\\\1", part) for part in parts)

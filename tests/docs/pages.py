"""The code in README.md and docs/: `PAGES` are those that show any."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ALL = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in _ALL if re.search(r"```(sh|python)|`uae ", page.read_text(encoding="utf-8"))]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_ENDS = ("|", ">", "<", "&&", ";", "2>")  # of a command, for the shell


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code of a language."""
    return [code for found, code in _FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command in shell code, without comments, assignments before it and what is behind a pipe."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = [word for word in shlex.split(line, comments=True) if word != "..."]  # and so on
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            ends = [number for number, word in enumerate(words) if word in _ENDS]
            if words:
                yield words[: min(ends, default=None)] if ends else words


def mentioned(page: Path) -> Iterator[list[str]]:
    """The words of each `uae ...` in running text."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for span in _SPAN.findall(text):
        if span.startswith("uae "):
            yield shlex.split(" ".join(span.split()))

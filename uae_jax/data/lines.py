"""Text files that somebody else wrote."""

from collections.abc import Iterator
from pathlib import Path


def whole_text(file: Path) -> str:
    """What is in it, without a byte order mark.

    Raises:
      ValueError: if it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 (byte {error.start}), wanted a text file") from None


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbers from 1 and lines, stripped, of those that are not blank; raises as `whole_text`.

    Only line feeds end a line: JSON may hold other characters that `splitlines` splits at.
    """
    for number, line in enumerate(whole_text(file).split("\n"), start=1):
        if line := line.strip():
            yield number, line

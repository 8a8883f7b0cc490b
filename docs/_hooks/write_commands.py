"""reference/commands.md: what every command says of itself."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_HEAD = """# Commands

Written by `--help` itself. Results go to stdout, progress to stderr; the exit code is 0 where all was done, 1 where
something failed or was skipped, 2 where the command line was wrong.
"""


def pages(root: Path) -> dict[str, str]:
    """Path -> Markdown."""
    sys.path.insert(0, str(root))
    try:
        from uae_jax.cli import build_parser  # imports nothing but the standard library
    finally:
        sys.path.remove(str(root))
    os.environ["COLUMNS"] = "100"
    sections = [f"## {name}\n\n```text\n{text.rstrip()}\n```\n" for name, text in helps(build_parser())]
    return {"reference/commands.md": "\n".join([_HEAD, *sections])}


def helps(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """(name, help) of every command that does something."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for command in action.choices.values():
            yield from helps(command)
    if not below:
        yield parser.prog, parser.format_help()

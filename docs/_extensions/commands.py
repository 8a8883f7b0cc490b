"""What every command says of itself, for reference/commands.md."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path


def markdown(root: Path) -> str:
    """A section for each command."""
    from uae_jax.cli import build_parser  # imports nothing but the standard library

    os.environ["COLUMNS"] = "100"
    return "\n".join(f"## {name}\n\n```text\n{text.rstrip()}\n```\n" for name, text in helps(build_parser()))


def helps(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """(name, help) of every command that does something."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for command in action.choices.values():
            yield from helps(command)
    if not below:
        yield parser.prog, parser.format_help()

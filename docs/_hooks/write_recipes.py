"""reference/recipes.md: what every file in configs/ says of itself."""

import ast
from pathlib import Path

_HEAD = """# Config files

Every file in `configs/` is run by `uae train --config FILE --workdir DIR`; what follows the colon in `FILE:ARG` is read
by the file itself, and `--config.KEY=VALUE` changes any of the [settings](settings.md). `--print-config` prints what
comes out and stops.
"""


def pages(root: Path) -> dict[str, str]:
    """Path -> Markdown."""
    files = sorted((root / "configs").rglob("*.py"), key=lambda path: (len(path.parts), path))
    return {"reference/recipes.md": "\n".join([_HEAD, *(_section(path, root) for path in files)])}


def _section(path: Path, root: Path) -> str:
    first, _, rest = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")
    more = f"\n```text\n{rest.strip()}\n```\n" if rest.strip() else ""
    return f"## `{path.relative_to(root).as_posix()}`\n\n{first}\n{more}"

"""What every file in configs/ says of itself, for reference/recipes.md."""

import ast
from pathlib import Path


def markdown(root: Path) -> str:
    """A section for each file."""
    files = sorted((root / "configs").rglob("*.py"), key=lambda path: (len(path.parts), path))
    return "\n".join(_section(path, root) for path in files)


def _section(path: Path, root: Path) -> str:
    first, _, rest = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")
    more = f"\n```text\n{rest.strip()}\n```\n" if rest.strip() else ""
    return f"## `{path.relative_to(root).as_posix()}`\n\n{first}\n{more}"

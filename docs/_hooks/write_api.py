"""api/*.md: a page for each package, with all its modules, which mkdocstrings fills from their docstrings."""

import ast
from pathlib import Path

_PACKAGE = "uae_jax"
_COMMANDS = ("cli", "commands", "command", "data_commands")  # what the command line does; see reference/commands.md
_HEAD = """# The Python package

Letters in shapes are explained at the top of each module; `f32[B, H, W, 3]` is an array of float32 of that shape, `[B,
T, D]` one whose type follows its input. Names that begin with an underscore are nobody's business.

| package | what |
|---|---|
"""


def pages(root: Path) -> dict[str, str]:
    """Path -> Markdown."""
    packages = {file.parent: file for file in sorted((root / _PACKAGE).rglob("__init__.py"))}
    top = root / _PACKAGE
    written, rows = {}, [f"| [`{_PACKAGE}`]({_PACKAGE}.md) | {_summary(packages[top])} |"]
    for folder in packages:
        name = ".".join(folder.relative_to(root).parts)
        modules = sorted(file for file in folder.glob("*.py") if file.stem not in ("__init__", *_COMMANDS))
        modules = [file for file in modules if _summary(file)]
        if not modules:
            continue
        parts = [f"# `{name}`\n\n{_summary(packages[folder])}\n"]
        parts += [f"## `{file.stem}`\n\n::: {name}.{file.stem}\n    options:\n      show_root_heading: false\n" for file in modules]
        written[f"api/{name}.md"] = "\n".join(parts)
        if folder != top:
            rows.append(f"| [`{name}`]({name}.md) | {_summary(packages[folder])} |")
    return written | {"api/index.md": _HEAD + "\n".join(rows) + "\n"}


def _summary(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]

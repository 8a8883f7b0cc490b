"""Pages that are written anew in every build, and the navigation of folders whose pages nobody lists."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import write_api
import write_commands
import write_recipes
import write_settings
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
WRITERS: tuple[Callable[[Path], dict[str, str]], ...] = (
    write_commands.pages,
    write_settings.pages,
    write_recipes.pages,
    write_api.pages,
)
_ALL = "/*"

_written: dict[str, str] = {}


def on_config(config: Any) -> Any:
    """Writes the pages, and puts the pages of a folder where the navigation says "folder/*"; an event of MkDocs."""
    _written.clear()
    for write in WRITERS:
        _written.update(write(ROOT))
    docs = Path(config.docs_dir)
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} | _written.keys()
    config.nav = [_expanded(item, there) for item in config.nav]
    config.watch.append(str(ROOT / "uae_jax"))
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the written pages; an event of MkDocs."""
    for name, text in _written.items():
        files.append(File.generated(config, name, content=text))
    return files


def _expanded(item: Any, there: set[str]) -> Any:
    """A folder's pages in order, its index first."""
    if not isinstance(item, dict):
        return item
    ((title, pages),) = item.items()
    if not isinstance(pages, str) or not pages.endswith(_ALL):
        return item
    folder = pages.removesuffix("*")
    return {title: sorted((page for page in there if page.startswith(folder)), key=_index_first)}


def _index_first(page: str) -> tuple[bool, str]:
    return not page.endswith("/index.md"), page

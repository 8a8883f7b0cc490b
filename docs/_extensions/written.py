"""Pages that are written anew in every build: "<!-- written: NAME -->" becomes what the module NAME writes.

"<!-- written: NAME WHAT -->" asks it for that.
"""

import importlib
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_MARK = re.compile(r"^<!-- written: (\w+)(?: (\S+))? -->$", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    """Listens to sources; an entry point of Sphinx."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    root = Path(app.srcdir).parent
    source[0] = _MARK.sub(lambda mark: _written(root, *mark.groups()), source[0])


def _written(root: Path, module: str, what: str | None) -> str:
    write = importlib.import_module(module).markdown
    return write(root) if what is None else write(root, what)

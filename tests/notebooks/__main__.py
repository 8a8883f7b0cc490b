"""Runs notebooks and writes their outputs into them: `python -m tests.notebooks [NAME ...]`, all by default.

They run at full length but for what UAE_NOTEBOOK_STEPS and UAE_NOTEBOOK_SCENES in the environment say.
"""

import sys
import tempfile
from pathlib import Path

import nbformat

from tests.notebooks.running import NOTEBOOKS, execute


def main(names: list[str]) -> None:
    """Runs those of these names."""
    if unknown := set(names) - {file.stem for file in NOTEBOOKS}:
        sys.exit(f"{', '.join(unknown)}: unknown, wanted some of {', '.join(file.stem for file in NOTEBOOKS)}")
    for file in NOTEBOOKS:
        if names and file.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(file, Path(folder))
        nbformat.write(notebook, file)
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])

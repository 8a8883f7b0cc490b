"""Runs notebooks from top to bottom, as somebody who opens them would."""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests import quickly

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LIMIT_S = 3600  # of a cell


def execute(file: Path, folder: Path, flags: str = "", **parameters: object) -> nbformat.NotebookNode:
    """Runs a notebook in a kernel of its own, in `folder`, on the model that comes with the package.

    Args:
      file: the notebook; not written to.
      folder: where it works.
      flags: of XLA.
      **parameters: STEPS, SCENES, OVERRIDES, WORKDIR: what it reads from the environment as UAE_NOTEBOOK_...

    Returns:
      it, with its outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    environment = os.environ | {"XLA_FLAGS": flags}  # of its own: one device, not eight
    environment |= {"UAE_NOTEBOOK_MODEL": "tiny", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {f"UAE_NOTEBOOK_{name}": str(value) for name, value in parameters.items()}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment["PYTHONWARNINGS"] = "ignore:IProgress not found"  # no widgets, no bars
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # `!uae`
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook, timeout=LIMIT_S, resources={"metadata": {"path": str(folder)}}, record_timing=False
    )
    client.execute(env=environment)
    return notebook


def runs_as_committed(file: Path, folder: Path, **parameters: object) -> str:
    """Executes a notebook; it must be as it is committed, and show as many pictures. Returns what it printed."""
    notebook, committed = execute(file, folder, quickly.XLA_FLAGS, **parameters), nbformat.read(file, as_version=4)
    assert pictures(notebook) == pictures(committed) > 0
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in committed.cells]
    return printed(notebook)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """All outputs, in order."""
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook: nbformat.NotebookNode) -> str:
    """What it printed."""
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def pictures(notebook: nbformat.NotebookNode) -> int:
    """How many pictures it shows."""
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))

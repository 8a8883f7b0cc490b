"""Notebooks run from top to bottom on the embedded model, and are committed with small, real outputs."""

import json
import re

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

from tests.notebooks.running import NOTEBOOKS, outputs, pictures, runs_as_committed
from tests.tiny.embedded import needed

NAMES = ("full_size", "inference", "train_tiny", "unified_bench")
MOST_BYTES = 500_000
REPOSITORY = re.compile(
    r"https://colab\.research\.google\.com/github/([\w-]+/uae_jax)/blob/main/notebooks/(\w+)\.ipynb"
)
every = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def test_they_are_all_there():
    assert tuple(file.stem for file in NOTEBOOKS) == NAMES


@every
def test_has_a_badge_and_one_install_cell_of_the_same_repository(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    (repository, name), *others = REPOSITORY.findall(notebook.cells[0].source)
    assert name == file.stem and not others
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert [number for number, source in enumerate(code) if "pip install" in source] == [0]
    assert f"git+https://github.com/{repository}" in code[0] and "-q" in code[0]
    assert 'find_spec("uae_jax") is None' in code[0]  # where it is installed, nothing is done
    assert 'which("nvidia-smi")' in code[0]  # with a plug-in that is too old for its version, JAX leaves a GPU alone


@every
def test_is_short_and_explained(file):
    cells = nbformat.read(file, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert len(code) <= 8 and max(len(source.splitlines()) for source in code) <= 16
    assert not any(re.search(r"^(def|class) ", source, re.MULTILINE) for source in code)  # that is for the package
    assert sum(cell.cell_type == "markdown" for cell in cells) >= 3


@needed
@every
def test_its_outputs_are_committed_and_small(file):
    assert file.stat().st_size < MOST_BYTES
    notebook = nbformat.read(file, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # one run, top to bottom
    assert pictures(notebook) and not any(output.output_type == "error" for output in outputs(notebook))


@needed
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "train_tiny"])  # which goes with the demonstration
def test_runs_from_top_to_bottom(name, tmp_path):
    file = next(file for file in NOTEBOOKS if file.stem == name)
    said = runs_as_committed(file, tmp_path, STEPS=1, SCENES=4)
    if name == "unified_bench":
        records = [json.loads((tmp_path / f"bench/notebook/{name}.json").read_text()) for name in ("guided", "plain")]
        assert all(record["uae_jax"]["all_pairs"] for record in records)
        assert "difference" in said and "4 pairs" in said  # `uae bench compare` went through

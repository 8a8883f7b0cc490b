"""Notebooks run from top to bottom on the embedded model, and are committed with small, real outputs."""

import json
import re

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

from tests.notebooks.running import NOTEBOOKS, execute, outputs, pictures, printed
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
@every
def test_runs_from_top_to_bottom(file, tmp_path):
    quickly_compiled = "--xla_backend_optimization_level=0"  # which takes longer than running, here
    notebook = execute(file, tmp_path, quickly_compiled, STEPS=1, SCENES=4)
    committed = nbformat.read(file, as_version=4)
    assert pictures(notebook) == pictures(committed) > 0
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in committed.cells]
    said = printed(notebook)
    if file.stem == "train_tiny":
        assert len(list((tmp_path / "runs/notebook").glob("*/model"))) == 4
        assert "embedded" in said and "generation" in said
    if file.stem == "unified_bench":
        records = [json.loads((tmp_path / f"bench/notebook/{name}.json").read_text()) for name in ("guided", "plain")]
        assert all(record["uae_jax"]["all_pairs"] for record in records)
        assert "difference" in said and "4 pairs" in said  # `uae bench compare` went through

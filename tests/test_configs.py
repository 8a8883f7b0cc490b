"""Every file in `configs/` loads, says how it is run, and names the file that it is in."""

import ast
import re
from pathlib import Path

import pytest

from uae_jax.training import configure

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "configs").rglob("*.py") if "def get_config" in path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_loads_and_its_docstring_says_how_to_run_it(path):
    experiments = configure.load_config(str(path))
    assert experiments
    text = ast.get_docstring(ast.parse(path.read_text()))
    command = re.search(r"uae train --config (\S+?)(:\S*)? ", text)
    assert command and command.group(1) == str(path.relative_to(ROOT))


def test_there_are_configs():
    assert len(FILES) >= 4

"""The site builds without a warning, shows what it is to show, and fetches nothing."""

import dataclasses
import html
import re
import subprocess
import sys

import pytest

for library in ("furo", "griffe", "latex2mathml", "myst_parser", "sphinx"):
    pytest.importorskip(library)

from tests.docs.pages import ROOT
from uae_jax.stages import registry
from uae_jax.training.config import Experiment

EXTENSIONS = ROOT / "docs/_extensions"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: path -> HTML."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--builder", "html"]
    command = [sys.executable, "-m", "sphinx", *options, "-d", str(folder / "trees"), "docs", str(folder / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {str(file.relative_to(folder / "html")): file.read_text() for file in (folder / "html").rglob("*.html")}


@pytest.mark.slow
def test_every_page_is_there_and_reached(site):
    sources = {str(file.relative_to(ROOT / "docs").with_suffix(".html")) for file in (ROOT / "docs").rglob("*.md")}
    assert sources <= site.keys()
    results = [name for name in sources if name.startswith("results/") and name != "results/index.html"]
    assert results and all(f'href="{name}"' in site["index.html"] for name in results)  # a new one needs no entry


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    for name, page in site.items():
        for tag in re.findall(r"<(?:script|link|img|iframe|object)\b[^>]*>", page):
            assert not re.search(r'(src|href|data)="(https?:)?//', tag), f"{name}: {tag}"


@pytest.mark.slow
def test_formulas_and_the_picture_are_drawn(site):
    assert "<mfrac>" in site["stages/understanding_for_gen.html"]
    assert 'class="loop"' in site["concepts.html"]
    assert not [name for name, page in site.items() if "\\mathrm" in page or "<!-- written:" in page]


@pytest.mark.slow
def test_every_setting_of_every_stage_is_listed(site):
    page = html.unescape(re.sub(r"<[^>]+>", "", site["reference/settings.html"]))
    kinds = [Experiment, *(registry.find(name).Settings for name in registry.names())]
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert re.search(rf"^{field.name}$", page, re.MULTILINE), f"{kind.__name__}.{field.name}"


@pytest.fixture
def docstrings(monkeypatch):
    monkeypatch.syspath_prepend(EXTENSIONS)
    import docstrings

    return docstrings


def test_sections_and_entries_of_a_docstring(docstrings):
    text = (
        "What it does.\n\nMore.\n\nArgs:\n  low, high: limits, of\n    two lines.\n  x: f32[B].\n\nReturns:\n  f32[B]."
    )
    found = dict(docstrings.sections(text))
    assert list(found) == ["", "Args", "Returns"]
    assert list(docstrings.entries(found["Args"])) == [("low, high", "limits, of two lines."), ("x", "f32[B].")]


def test_plain_text_stays_what_it_is_in_markdown(docstrings):
    assert docstrings.escaped("x_t * `a_b` <p>") == r"x\_t \* `a_b` \<p>"
    code = docstrings.to_markdown("Text:\n\n    one\n\n    two\n\nMore.")
    assert code == "Text:\n\n```text\n    one\n\n    two\n```\n\nMore."

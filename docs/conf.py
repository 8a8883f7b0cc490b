"""The documentation site: `launch/docs.sh` builds it, strictly.

Nothing of the package is imported but its command line, so no JAX is needed: API pages and settings are read off the
source. Nothing is fetched from elsewhere when a page is looked at.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "_extensions")]

project = "uae_jax"
copyright = "the authors of uae_jax; Apache-2.0"
release = re.search(r'__version__ = "(.+)"', (ROOT / "uae_jax/__init__.py").read_text(encoding="utf-8")).group(1)

extensions = ["myst_parser", "mathematics", "written"]
exclude_patterns = ["_extensions", "results/ablations/*"]
myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 4

smartquotes = False

html_theme = "furo"
html_title = "uae_jax"
html_static_path = ["assets"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_math_renderer = "mathml"

"""A run of Unified-Bench to look at: one HTML file, the worst pairs first."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from uae_jax import html
from uae_jax.bench.pairing import Pairing
from uae_jax.bench.unified import OWN, Scores
from uae_jax.data.images import open_image
from uae_jax.html import text

SIDE_PX = 256
_STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1rem; margin-top: 1rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem; overflow-wrap: anywhere; }
.pair { display: flex; gap: .5rem; }
.pair img { width: 50%; min-width: 0; height: 160px; object-fit: contain; background: #8881; }
.pair img.small { image-rendering: pixelated; }
.card .id { color: var(--soft); font-size: .75rem; margin: .4rem 0; }
.card p { font-size: .85rem; margin: .3rem 0; max-height: 14rem; overflow-y: auto; }
"""


def to_html(record: Mapping[str, Any], pairing: Pairing, captions: Mapping[str, str], limit: int) -> str:
    """The whole page; whatever comes from files is escaped.

    Args:
      record: of `unified.result`.
      pairing: that it is of.
      captions: name of a reference -> its caption, as far as there are any.
      limit: pairs that are shown.
    """
    scores: Scores = record["similarities_by_model"]
    means = {
        name: float(np.mean([scores[scorer][name] for scorer in record[OWN]["overall_of"]]))
        for name in pairing.pairs
        if all(values[name] is not None for values in scores.values())
    }
    worst = sorted(means, key=means.get)[:limit]
    shown = f"{len(worst)} worst of {len(means)}" if len(worst) < len(means) else f"all {len(means)}"
    body = [
        "<h1>Unified-Bench</h1>",
        f'<p class="counts">reference, painting, and how alike they are: {shown} pairs, the worst first</p>',
        *_summary(record),
        '<div class="cards">',
        *(_card(name, means[name], scores, pairing, captions.get(name, "")) for name in worst),
        "</div>",
    ]
    return html.page("Unified-Bench", _STYLE, body)


def _summary(record: Mapping[str, Any]) -> Iterable[str]:
    own, summary = record[OWN], record["summary"]
    yield "<table><tr><th>scorer</th><th>mean</th><th>95% interval</th></tr>"
    rows = [(name, mean, own["interval_by_model"][name]) for name, mean in summary["average_scores_by_model"].items()]
    title = "overall" if own["all_scorers"] else f"overall, of {', '.join(own['overall_of'])} only"
    for name, mean, (low, high) in [*rows, (title, summary["overall_average"], own["overall_interval"])]:
        yield f'<tr><td>{text(name)}</td><td class="number">{mean:.4f}</td><td>{low:.4f} to {high:.4f}</td></tr>'
    yield "</table>"
    if known := own.get("scene_scorers"):
        yield f"<p>scorers of the package, which know the scene world alone: {text(', '.join(known))}</p>"
    for title, names in (("without a painting", own["missing"]), ("unreadable", list(own["unreadable"]))):
        if names:
            more = ", ..." if len(names) > 20 else ""
            yield f"<p>{len(names)} {title}: {text(', '.join(names[:20]))}{more}</p>"


def _card(name: str, mean: float, scores: Scores, pairing: Pairing, caption: str) -> str:
    images = "".join(
        _image(file, what) for file, what in zip(pairing.pairs[name], ("reference", "painting"), strict=True)
    )
    told = ", ".join(f"{text(scorer)} {values[name]:.3f}" for scorer, values in scores.items())
    caption = f"<p>{text(caption)}</p>" if caption else ""
    return (
        f'<div class="card"><div class="pair">{images}</div>'
        f'<div class="id">{text(name)} &middot; {mean:.3f}: {told}</div>{caption}</div>'
    )


def _image(file: Any, what: str) -> str:
    image = open_image(file)
    small = ' class="small"' if max(image.size) <= SIDE_PX else ""
    kind, options = ("PNG", {"optimize": True}) if small else ("JPEG", {"quality": 80})
    image.thumbnail((SIDE_PX, SIDE_PX))
    return f'<img{small} alt="{what}" loading="lazy" src="{html.data_uri(html.encoded(image, kind, **options), kind)}">'

"""An inspection to look at: one HTML file with everything in it, small images included."""

from collections.abc import Iterable

from PIL import Image

from uae_jax import html
from uae_jax.data import inspect
from uae_jax.data.inspect import Card, Inspection
from uae_jax.html import text

_SMALL = 128  # pixels; smaller images are shown twice as large or more, with hard edges
_STYLE = """
.charts { display: flex; flex-wrap: wrap; gap: 1.2rem 2.4rem; }
.chart { min-width: 250px; flex: 1; max-width: 420px; }
.chart h3 { font-size: .9rem; margin: 0 0 .3rem; }
.chart p { color: var(--soft); font-size: .8rem; margin: 0 0 .4rem; }
.bar { display: grid; grid-template-columns: 6.5em 1fr 4.5em; gap: .5em; align-items: center; font-size: .8rem; }
.bar span { text-align: right; font-variant-numeric: tabular-nums; }
.bar i { display: block; height: .75em; min-width: 1px; background: var(--bar); border-radius: 2px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem; overflow-wrap: anywhere; }
.card .picture { height: 256px; display: flex; align-items: center; justify-content: center; background: #8881; }
.card img { max-width: 100%; max-height: 256px; }
.card img.small { image-rendering: pixelated; height: 256px; width: 256px; object-fit: contain; }
.card .id { color: var(--soft); font-size: .75rem; margin: .4rem 0; }
.card dl { margin: 0; font-size: .82rem; max-height: 18rem; overflow-y: auto; }
.card dt { color: var(--soft); font-size: .72rem; margin-top: .35rem; }
.card dd { margin: 0; white-space: pre-wrap; }
"""


def to_html(result: Inspection) -> str:
    """The whole page; whatever comes from the data is escaped."""
    tally = result.tally
    parts = [
        f"<h1>{text(result.source)}</h1>",
        f'<p class="counts">{result.records:,} records, {tally.seen:,} inspected: {tally.used:,} used, '
        f"{tally.bad:,} skipped ({tally.bad_fraction:.2%})</p>",
        *_charts(result),
        *_faults(result),
    ]
    if result.cards:
        parts += [f"<h2>{len(result.cards)} of them</h2>", '<div class="cards">', *map(_card, result.cards), "</div>"]
    return html.page(result.source, _STYLE, parts)


def _charts(result: Inspection) -> Iterable[str]:
    yield '<h2>Sizes</h2><div class="charts">'
    if result.sizes:
        sides = inspect.areas_root(result.sizes)
        yield _chart("side in pixels (square root of the area)", sides, inspect.side_histogram(result.sizes))
        yield _chart("width : height", [], inspect.aspect_histogram(result.sizes))
    for name, lengths in result.fields.items():
        for unit in ("words", "tokens"):
            if values := getattr(lengths, unit):
                yield _chart(f"{unit} of {name}", values, inspect.histogram(values, inspect.LENGTHS))
    yield "</div>"


def _chart(title: str, values: list, counts: dict[str, int]) -> str:
    most = max(counts.values())
    bars = [
        f'<div class="bar"><span>{text(label)}</span><i style="width:{100 * count / most:.1f}%"></i>'
        f"<span>{count:,}</span></div>"
        for label, count in counts.items()
    ]
    facts = inspect.summary(values) or {}
    line = ", ".join(f"{name} {value:,.4g}" for name, value in facts.items())
    return f'<div class="chart"><h3>{text(title)}</h3><p>{line}</p>{"".join(bars)}</div>'


def _faults(result: Inspection) -> Iterable[str]:
    for title, counts in (("Skipped", result.tally.skipped), ("Converted", result.tally.converted)):
        if not counts:
            continue
        yield f"<h2>{title}</h2><table><tr><th>kind</th><th>records</th><th>the first of them</th></tr>"
        for kind, count in sorted(counts.items(), key=lambda item: -item[1].count):
            names = ", ".join(map(text, result.tally.named(count, len(count.first))))
            yield f'<tr><td>{text(kind)}</td><td class="number">{count.count:,}</td><td>{names}</td></tr>'
        yield "</table>"


def _card(card: Card) -> str:
    width, height = card.size
    small = ' class="small"' if max(card.size) <= _SMALL else ""
    fields: dict[str, list[str]] = {}
    for field, caption in card.captions:
        fields.setdefault(field, []).append(caption)
    captions = "".join(
        f"<dt>{text(field)}{f' (1 of {len(texts)})' if len(texts) > 1 else ''}</dt><dd>{text(texts[0])}</dd>"
        for field, texts in fields.items()
    )
    return (
        f'<div class="card"><div class="picture"><img{small} alt="" src="{_data_uri(card.thumbnail)}"></div>'
        f'<div class="id">{text(card.id)} &middot; {width} &times; {height}</div><dl>{captions}</dl></div>'
    )


def _data_uri(image: Image.Image) -> str:
    """Small images stay exact, larger ones become JPEG."""
    if max(image.size) <= _SMALL:
        return html.data_uri(html.encoded(image, "PNG", optimize=True), "PNG")
    return html.data_uri(html.encoded(image, "JPEG", quality=80), "JPEG")

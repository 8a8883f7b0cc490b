"""The model card of the tiny model, from what its training runs recorded."""

import itertools
import json
from pathlib import Path
from typing import Any

from uae_jax.training.metrics import read_history
from uae_jax.weights import checkpoint

NAME = "MODEL_CARD.md"
_INTRODUCTION = """\
# The tiny UAE model

All architectures of the full model (Qwen2.5-VL, SD3 transformer, AutoencoderKL, CLIP, LongCLIP, DINOv2, DINOv3) at
sizes that two CPU cores train (only the decoder's last stage ran on a GPU), in bfloat16, trained from random numbers on
the synthetic scene world of `uae_jax.data.scenes` and on nothing else. It stands for the published weights wherever
these would be too large: in tests, demonstrations and experiments on a laptop. It knows 64x64 pictures of one to six
coloured shapes, and the words that describe them; photographs are foreign to it.

The encoder is a competent but terse captioner, as the model that it stands for is. The decoder paints one object as a
caption says, in every point nine times in ten; where it does not, there is a second one as often as not. Of several
objects some go missing, most of all where a short caption says little of them. The scorers have never seen the encoder
or the decoder.

Licence: that of the package. No data of third parties went in.
"""


def write(counts: dict[str, int], runs: dict[str, Path], measured: Path | None) -> str:
    """Writes the card.

    Args:
      counts: part -> parameters.
      runs: part -> folder of a training run, or of a model whose card tells of that part; where there is neither, the
        card says so.
      measured: JSON of `uae_jax.tiny.measure`.
    """
    lines = [_INTRODUCTION, "## Parts", "", "| part | parameters |", "|---|---|"]
    lines += [f"| {part} | {count:,} |" for part, count in counts.items()]
    lines += [f"| **all** | **{sum(counts.values()):,}** |", "", "## How each part was made", ""]
    for part, folder in runs.items():
        lines += [f"### {part}", "", *_history(part, folder), ""]
    lines += ["## Measured on held-out scenes", ""]
    if measured is None:
        lines += ["Not measured yet: `python -m uae_jax.tiny.measure --model tiny`."]
    else:
        lines += _figures(json.loads(measured.read_text()))
    return "\n".join(lines).rstrip() + "\n"


def _history(part: str, folder: Path) -> list[str]:
    """What was run before a part was done, first things first: a run that started from another's result names it."""
    steps: list[list[str]] = []
    seen: set[Path] = set()
    while (folder / "config.json").is_file() and folder.resolve() not in seen:
        seen.add(folder.resolve())
        config = json.loads((folder / "config.json").read_text())
        if "stage" not in config:
            break
        steps.insert(0, _run(folder, config))
        folder = _before(folder, config)
    told = [*_told(part, folder), *(line for step in steps for line in step)]
    return told or ["No record of a run. `configs/tiny` has the recipe."]


def _told(part: str, folder: Path) -> list[str]:
    """What the card of a model says of how a part was made; the folder is the model's, or that of a part of it."""
    folder = folder.resolve()
    card = next((place / NAME for place in (folder, *folder.parents[:2]) if (place / NAME).is_file()), None)
    if card is None:
        return []
    lines = card.read_text(encoding="utf-8").splitlines()
    if f"### {part}" not in lines:
        return []
    section = lines[lines.index(f"### {part}") + 1 :]
    section = itertools.takewhile(lambda line: not line.startswith("#"), section)
    return [line for line in section if line.startswith(("- ", "  - "))]


def _before(folder: Path, config: dict[str, Any]) -> Path:
    """The run whose result this one started from; a folder that is none where there was none."""
    settings = config.get("settings") or {}
    start = Path(str(settings.get("model", "")))
    if start.parts and (checkpoint.EMBEDDED / start).is_dir():
        return checkpoint.EMBEDDED / start
    start = folder / start if start.parts[:1] == ("..",) else start  # of the same list of stages
    return start.parent if start.name == "model" else start


def _run(folder: Path, config: dict[str, Any]) -> list[str]:
    settings = config.get("settings") or {}
    rows = read_history(folder)
    lines = [
        f"- stage `{config['stage']}`, from `{settings.get('model', '')}`: {config['steps']} steps of "
        f"{config['batch_size']} examples, learning rate {config['optimiser']['learning_rate']:g}, seed "
        f"{config['seed']}{_duration(rows)}"
    ]
    last: dict[str, Any] = {}
    for row in rows:
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        last |= {name: value for name, value in numbers.items() if name.startswith("evaluation/")}
    if last:
        told = ", ".join(f"{name.removeprefix('evaluation/')} {value:.4g}" for name, value in sorted(last.items()))
        lines.append(f"  - at the end, on held-out scenes: {told}")
    return lines


def _duration(rows: list[dict[str, Any]]) -> str:
    """Time between readings, pauses of more than ten minutes left out: those were between two starts."""
    spans = [b["time"] - a["time"] for a, b in itertools.pairwise(rows)]
    spans = [span for span in spans if 0 <= span < 600]
    return f", {sum(spans) / 60:.0f} minutes" if spans else ""


def _figures(measured: dict[str, Any]) -> list[str]:
    lines = ["| figure | value |", "|---|---|"]
    for group, values in measured.items():
        if isinstance(values, dict):
            lines += [f"| {group}: {name} | {_shown(value)} |" for name, value in values.items()]
        else:
            lines.append(f"| {group} | {_shown(values)} |")
    return lines


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

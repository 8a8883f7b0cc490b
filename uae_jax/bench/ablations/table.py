"""The table of the ablations: of each arm its figures, how they differ from what it is compared with, how surely."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uae_jax.rewards.reconstruction import UNIFIED
from uae_jax.stages.scene_scores import of_each
from uae_jax.tiny.compare import DRAWS, Ratios, compare, sure

HELD_OUT = "held_out"
# Figure -> heading, in the order of the table.
COLUMNS = {
    "unified": "unified",
    HELD_OUT: "held out",
    "clip": "CLIP",
    "longclip": "LongCLIP",
    "dinov2": "DINOv2",
    "dinov3": "DINOv3",
    "words": "words",
    "attribute_precision": "precision",
    "attribute_recall": "recall",
    "painting_accuracy": "painting",
}
LEGEND = (
    "Held-out scenes. Each cell: the mean over seeds and scenes, and in brackets its difference from what the arm is "
    "compared with and the 95% interval of that, over scenes (bootstrap) and seeds (Student's t); bold where the "
    "interval leaves out zero. Of one seed it is over scenes alone, says nothing of another training, and nothing is "
    "bold. unified: mean cosine of the four scorers; †: this one rewarded; held out: mean of those that rewarded "
    "neither side; words: of a caption; precision, recall: of the attributes that captions state; painting: how much "
    "of the scene is in what was painted from its caption."
)


def arm_row(
    treated: Sequence[Ratios], control: Sequence[Ratios], rewarded: Sequence[str], draws: int = DRAWS
) -> dict[str, Any]:
    """Compares an arm.

    Args:
      treated, control: of each seed, its figures on the same scenes, see `compare`.
      rewarded: scorers that rewarded one side or the other.
      draws: of the bootstrap.

    Returns:
      what `compare` does, of all figures and "held_out", where a scorer was.
    """
    free = [name for name in UNIFIED if name in treated[0] and name not in rewarded]

    def with_held_out(ratios: Ratios) -> Ratios:
        own = {HELD_OUT: of_each(np.mean([ratios[name][:, 0] for name in free], axis=0))} if free else {}
        return {**ratios, **own}

    return compare([with_held_out(ratios) for ratios in treated], [with_held_out(ratios) for ratios in control], draws)


def to_markdown(found: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
      found: study -> "question", "against", "seeds", "scenes", how it was trained where the files do not say it all
        ("steps", "stage"), and "arms": name -> "rewarded" and "figures", of `arm_row`.
    """
    lines = ["# Ablations", "", LEGEND, ""]
    for name, study in found.items():
        lines += [f"## {name}", "", study["question"], ""]
        seeds = ", ".join(map(str, study["seeds"]))
        how = [f" {name.capitalize()}: {study[name]}." for name in ("stage", "steps") if study.get(name)]
        lines += [f"Compared with: {study['against']}. Seeds: {seeds}. Scenes: {study['scenes']}.{''.join(how)}", ""]
        there = [column for column in COLUMNS if any(column in arm["figures"] for arm in study["arms"].values())]
        lines.append("| " + " | ".join(["arm", *(COLUMNS[column] for column in there)]) + " |")
        lines.append("|" + "---|" * (len(there) + 1))
        for arm, row in study["arms"].items():
            cells = [_cell(column, row, arm == study["against"]) for column in there]
            lines.append("| " + " | ".join([arm, *cells]) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(column: str, row: Mapping[str, Any], itself: bool) -> str:
    if column not in row["figures"]:
        return ""
    figure, digits = row["figures"][column], 1 if column == "words" else 3
    mark = "†" if column in row["rewarded"] else ""
    mean = f"{figure['treated']:.{digits}f}{mark}"
    if itself:
        return mean
    low, high = figure["low"], figure["high"]
    told = f"{mean} ({figure['difference']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}])"
    return f"**{told}**" if sure(figure) else told

"""Measures a model on scenes that nothing was trained on: `python -m uae_jax.tiny.measure [--model tiny]`.

The table goes to stdout, the same figures as JSON to --output, progress to stderr. What is measured says
`uae_jax.tiny.figures`; works for any UAE folder, and with the scorers that it has in its folder `scorers`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import tqdm

from uae_jax.data.scenes import LEVELS
from uae_jax.data.tokenizers import load_tokenizer
from uae_jax.pipeline import UAE
from uae_jax.tiny import figures
from uae_jax.tiny.figures import ONE_OBJECT, SEVERAL, Scenes
from uae_jax.weights import checkpoint, uae

GROUP = 64  # captions that an image's own is found among
# What a foundation has to reach: group, figure, least and most.
WANTED = (
    ("vae", "psnr", 30.0, None),
    ("clip", "retrieval_1_of_64_long", 0.95, None),
    ("longclip", "retrieval_1_of_64_exhaustive", 0.95, None),
    ("captions", "grammatical", 0.95, None),
    ("captions", "attribute_precision", 0.9, None),
    ("captions", "attribute_recall", 0.4, 0.7),
    ("paintings of one object", "accuracy", 0.9, None),
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns 0 if all that is wanted was reached, else 1."""
    parser = argparse.ArgumentParser(prog="python -m uae_jax.tiny.measure", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny", metavar="NAME|DIR", help="UAE folder (default: tiny)")
    parser.add_argument("--scenes", type=int, default=512, metavar="N", help="for each figure (default: 512)")
    parser.add_argument("--seed", type=int, default=figures.SEED, help=f"of the scenes (default: {figures.SEED})")
    parser.add_argument("--only", action="append", metavar="GROUP", help="vae, captions, loop, paintings, a scorer")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures here, too")
    args = parser.parse_args(arguments)
    model = UAE.from_pretrained(args.model)
    found = measure(model, checkpoint.resolve(args.model), args.scenes, args.seed, args.only)
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    return 0 if all(reached is not False for *_, reached in verdicts(found)) else 1


def measure(model: UAE, folder: Path, count: int, seed: int = figures.SEED, only: list[str] | None = None) -> dict:
    """Measures everything.

    Args:
      model: its scorers included.
      folder: of the model, for the tokenizers of its scorers.
      count: scenes for each figure.
      seed: of the scenes.
      only: groups that are wanted; None for all.

    Returns:
      group -> figure -> number.
    """
    some = Scenes.sample(count, seed)
    found: dict[str, dict[str, float]] = {}

    def run(group: str, total: int, function, *args, kind: str = "") -> None:
        if only is None or (kind or group) in only:
            with tqdm.tqdm(total=total, desc=group, unit=" scene", file=sys.stderr) as bar:
                start = time.monotonic()
                result = function(*args, bar.update)
                figures_of = result[0] if isinstance(result, tuple) else result
                found.setdefault(group, {}).update(figures_of)
                found[group]["seconds"] = found[group].get("seconds", 0.0) + time.monotonic() - start

    run("vae", count, figures.reconstruction, model, some)
    for name, scorer in model.scorers.items():
        run(name, count * (len(figures.CHANGES) + 1), figures.closeness, scorer, some)
        if scorer.model.architecture.name == "CLIPModel":
            tokenizer = load_tokenizer(folder / uae.SCORERS / name)
            levels = LEVELS[1:]
            whole = count // GROUP * GROUP * len(levels)
            run(name, whole, figures.retrieval, scorer, tokenizer, some, levels, GROUP)
    run("captions", count, figures.captioning, model, some)
    run("loop", count, figures.loop, model, some)
    one, several = Scenes.sample(count, seed, ONE_OBJECT), Scenes.sample(count, seed, SEVERAL)
    for group, scenes, level in (
        ("paintings of one object", one, "medium"),
        ("paintings of several, short captions", several, "short"),
        ("paintings of several, exhaustive captions", several, "exhaustive"),
    ):
        run(group, count, figures.painting, model, scenes, level, kind="paintings")
    return found


def verdicts(found: dict) -> list[tuple[str, str, float | None, str, bool | None]]:
    """What was wanted and what came: (group, figure, value, what was wanted, whether reached); None if not measured."""
    lines = []
    for group, name, least, most in WANTED:
        value = found.get(group, {}).get(name)
        reached = None if value is None else value >= least and (most is None or value <= most)
        wanted = f"at least {least:g}" if most is None else f"{least:g} to {most:g}"
        lines.append((group, name, value, wanted, reached))
    return lines


def table(found: dict) -> str:
    """All figures, a line each, and below them those that a foundation has to reach."""
    lines = [f"{group:44}{name:36}{value:9.3f}" for group, row in found.items() for name, value in row.items()]
    words = {True: "reached", False: "NOT REACHED", None: "not measured"}
    for group, name, value, wanted, reached in verdicts(found):
        shown = "        -" if value is None else f"{value:9.3f}"
        lines.append(f"{words[reached]:14}{group:30}{name:36}{shown}  wanted {wanted}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Compares runs with control runs, seed by seed, on held-out scenes.

    python -m uae_jax.tiny.compare --treated RUN RUN RUN --control RUN RUN RUN [--scenes 512] [--guidance 1]

A RUN is the folder of a finished `uae train` run (its model lies in `model/`), a UAE folder, or "tiny"; first goes with
first, and a single control serves all. `--control` may be given several times, for a table each. Every model captions
and repaints the same scenes, with the guidance that it brings or the one given, judged by the scorers that come with
the package. A table gives, of each figure, both means, their difference, its 95% interval over scenes and seeds (over
scenes alone where there is one seed), and the difference of each seed.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tqdm
from scipy.special import stdtrit

from uae_jax.pipeline import UAE
from uae_jax.rewards.reconstruction import DEFAULT_PARTS, scorer_folder
from uae_jax.tiny import figures
from uae_jax.tiny.assemble import model_folder
from uae_jax.tiny.figures import Look, Scenes

DRAWS = 10_000
_AT_ONCE = 1000  # draws that are held
Ratios = dict[str, np.ndarray]  # figure -> f64[N, 2], see `scene_scores.pooled`


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m uae_jax.tiny.compare", description=__doc__.split("\n")[0])
    parser.add_argument("--treated", nargs="+", required=True, metavar="RUN", help="one for each seed")
    parser.add_argument(
        "--control", nargs="+", action="append", required=True, metavar="RUN", help="one for each seed, or one for all"
    )
    parser.add_argument("--scenes", type=int, default=512, metavar="N", help="held-out scenes (default: 512)")
    parser.add_argument("--guidance", type=float, metavar="W", help="of all paintings; 1 is off (default: the model's)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures here, too")
    args = parser.parse_args(arguments)
    for control in args.control:
        if len(control) not in (1, len(args.treated)):
            parser.error(f"got {len(args.treated)} treated and {len(control)} control runs; wanted as many, or one")
    scenes, measured = Scenes.sample(args.scenes), {}
    for run in dict.fromkeys([*args.treated, *itertools.chain(*args.control)]):
        measured[run] = measure(run, scenes, Look(guidance=args.guidance))
    comparisons, how = [], {"scenes": args.scenes, "guidance": args.guidance}
    for control in args.control:
        each = control if len(control) > 1 else control * len(args.treated)
        found = compare([measured[run] for run in args.treated], [measured[run] for run in each])
        comparisons.append({"treated": args.treated, "control": control, **how, "figures": found})
        print(f"control: {', '.join(control)}\n{table(found)}")
    if args.output:
        args.output.write_text(json.dumps(comparisons, indent=2) + "\n", encoding="utf-8")


def measure(run: str, scenes: Scenes, look: Look = Look()) -> Ratios:
    """Sends scenes through the loop of one run's model, judged by the scorers that come with the package."""
    model = model_folder(Path(run)) if Path(run).is_dir() else run
    uae = UAE.from_pretrained(model, scorers={part.name: scorer_folder(part) for part in DEFAULT_PARTS})
    with tqdm.tqdm(total=len(scenes.images), desc=run, unit=" image", file=sys.stderr) as bar:
        return figures.loop_by_scene(uae, scenes, bar.update, look)[0]


def compare(treated: Sequence[Ratios], control: Sequence[Ratios], draws: int = DRAWS, seed: int = 0) -> dict[str, dict]:
    """Differences and how sure they are.

    The interval has two parts, whose distances are added as variances are (Zou and Donner 2008). Of the scenes: a
    bootstrap that draws N of them with replacement, alike for all models, since the same scene is hard or easy for all
    (Efron and Tibshirani, "An Introduction to the Bootstrap", 8.3). Of the seeds: Student's t of their differences; a
    bootstrap of three would hold the truth three times in four. One seed has no such part, and its interval says
    nothing of what another training would give.

    Args:
      treated, control: of each of S seeds, its figures on the same N scenes.
      draws: of the bootstrap.
      seed: of the draws.

    Returns:
      figure -> "treated", "control", "difference", "low" and "high", the bounds of its 95% interval, and "by_seed", a
      list.
    """
    names = list(treated[0])
    both = np.array([[[ratios[name] for name in names] for ratios in models] for models in (treated, control)])
    _, seeds, _, scenes, _ = both.shape  # [2, S, F, N, 2]
    rng = np.random.default_rng(seed)
    drawn = np.empty((draws, len(names)))
    for first in range(0, draws, _AT_ONCE):  # the same draws for every figure
        some = slice(first, min(first + _AT_ONCE, draws))
        sums = np.tensordot(_resampled(rng, some.stop - first, scenes), both, axes=(1, 3))  # [D, 2, S, F, 2]
        rates = _rates(sums).mean(axis=2)
        drawn[some] = np.round(rates[:, 0] - rates[:, 1], 12)  # the last digits of a sum are no difference
    treated_by_seed, control_by_seed = _rates(both.sum(axis=3))  # [S, F] each
    by_seed = np.round(treated_by_seed - control_by_seed, 12)
    difference = by_seed.mean(axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    others = stdtrit(seeds - 1, 0.975) * by_seed.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else 0.0
    low, high = difference - np.hypot(difference - low, others), difference + np.hypot(high - difference, others)
    return {
        name: {
            "treated": float(treated_by_seed[:, i].mean()),
            "control": float(control_by_seed[:, i].mean()),
            "difference": float(difference[i]),
            "low": float(low[i]),
            "high": float(high[i]),
            "by_seed": [float(x) for x in by_seed[:, i]],
        }
        for i, name in enumerate(names)
    }


def sure(row: dict) -> bool:
    """Whether a figure differs: its interval is over seeds, too, and leaves out zero."""
    return len(row["by_seed"]) > 1 and (row["low"] > 0 or row["high"] < 0)


def _resampled(rng: np.random.Generator, draws: int, scenes: int) -> np.ndarray:
    """How often each scene is drawn, f64[D, N]."""
    drawn = rng.integers(0, scenes, (draws, scenes)) + scenes * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * scenes).reshape(draws, scenes).astype(np.float64)


def _rates(sums: np.ndarray) -> np.ndarray:
    """[..., 2] -> [...]: numerator over denominator, 1 where that is 0."""
    above, below = sums[..., 0], sums[..., 1]
    return np.where(below > 0, above / np.maximum(below, 1), 1.0)


def table(found: dict[str, dict]) -> str:
    """A line for each figure; those that are `sure` have a star."""
    lines = [f"{'':22}{'treated':>9}{'control':>9}{'difference':>12}{'95% interval':>20}   by seed"]
    for name, row in found.items():
        star = "*" if sure(row) else " "
        interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        seeds = " ".join(f"{x:+.3f}" for x in row["by_seed"])
        means = f"{row['treated']:9.3f}{row['control']:9.3f}{row['difference']:+11.3f}{star}"
        lines.append(f"{name:22}{means}{interval:>20}   {seeds}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""What `uae demo` does: trains, measures the model before and after every stage, writes the report, prints a table."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import tqdm

from uae_jax.pipeline import UAE
from uae_jax.report import page
from uae_jax.rewards.reconstruction import DEFAULT_PARTS, scorer_folder
from uae_jax.tiny import figures
from uae_jax.tiny.figures import Look, Scenes
from uae_jax.training import chain, configure

CONFIG = Path(__file__).with_name("config.py")
START = "tiny"
LOOK = Look(guidance=1.0)  # as the stages paint; with guidance it takes twice the time
FIGURES = "figures.json"
# Figure -> heading, in the order of the table.
COLUMNS = {
    "unified": "unified",
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
    "All on scenes that nothing was trained on. unified: mean cosine of the four scorers, of which CLIP was rewarded; "
    "words: of a caption; precision, recall: of the attributes that captions state; painting: how much of the scene is "
    "in what was painted from its caption, without guidance."
)


def demo(args: argparse.Namespace) -> int:
    """Runs everything that is not done yet in the working directory."""
    if args.scenes < 1:
        raise ValueError(f"--scenes is {args.scenes}, wanted at least 1 to measure on")
    workdir = Path(args.workdir).expanduser()
    experiments = configure.load_config(str(CONFIG), args.overrides)
    with compiled_once(workdir / "compile_cache"):
        return _demo(args, experiments, workdir)


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Keeps programs in a folder, where the user keeps them nowhere: one serves to measure the models of all stages."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before or str(folder))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def _demo(args: argparse.Namespace, experiments: list, workdir: Path) -> int:
    models = chain.train_stages(experiments, workdir, quiet=args.quiet)
    names = ["embedded", *(name for name, _ in experiments)]
    scenes = Scenes.sample(args.scenes)
    rows = {}
    for name, model in zip(names, [START, *models], strict=True):
        rows[name] = measured(model, scenes, f"measuring {name}", args.quiet)
    (workdir / FIGURES).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(f"{table(rows)}\n\n{LEGEND}\n")  # before the report, which may fail: measuring took minutes
    report = page.write(workdir)
    print(f"report: {report}")
    return 0


def measured(model: Path | str, scenes: Scenes, title: str, quiet: bool) -> dict[str, float]:
    """The figures of one model, judged by the scorers that come with the package."""
    uae = UAE.from_pretrained(model, scorers={part.name: scorer_folder(part) for part in DEFAULT_PARTS})
    with tqdm.tqdm(total=len(scenes.images), desc=title, unit=" image", file=sys.stderr, disable=quiet) as bar:
        return figures.loop(uae, scenes, bar.update, LOOK)[0]


def table(rows: dict[str, dict[str, float]]) -> str:
    """A line for each model; words with one decimal, all else with three."""
    columns = {name: heading for name, heading in COLUMNS.items() if any(name in row for row in rows.values())}
    width = max(len(name) for name in rows) + 2
    lines = ["after".ljust(width) + "".join(heading.rjust(11) for heading in columns.values())]
    for model, row in rows.items():
        cells = [f"{row[name]:.1f}" if name == "words" else f"{row[name]:.3f}" for name in columns]
        lines.append(model.ljust(width) + "".join(cell.rjust(11) for cell in cells))
    return "\n".join(lines)

"""What `uae bench scenes` does: writes every twin in its benchmark's own form, runs the benchmark, judges by the world.

OUTPUT/geneval     evaluation_metadata.jsonl   paintings/
OUTPUT/genevalpp   metadata.jsonl              paintings/
OUTPUT/dpg         prompts/, dpg_bench.csv     paintings/
OUTPUT/vqa         questions.jsonl, images/    answers.jsonl
OUTPUT/unified     references/                 result.json, result.html, result/
OUTPUT/result.json
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from uae_jax import plain
from uae_jax.bench import commands, unified
from uae_jax.bench.commands import Loader
from uae_jax.bench.scenes import asked, detected, dpg, held_out, prompts
from uae_jax.commands import caption_settings, model_settings, paint_settings
from uae_jax.data.caption_files import same_settings, write_whole
from uae_jax.data.scenes import render
from uae_jax.rewards.reconstruction import DEFAULT_PARTS, scorer_folder

_ANSWER_TOKENS = 16
_REFERENCES = 50  # kind of scene, see `held_out.draw`
Figures = dict[str, Any]  # "score", "interval" where there is one, and "by", name -> number


def run(args: argparse.Namespace) -> int:
    """Runs the twins that are wanted; prints and keeps what came out."""
    output, side = Path(args.output).expanduser(), _side(args)
    if args.scenes < 1:
        raise ValueError(f"--scenes is {args.scenes}, wanted at least 1")
    output.mkdir(parents=True, exist_ok=True)
    begun = [name for name in TWINS if (output / name).exists()]
    made_with = {"scenes": args.scenes, "side": side, **model_settings(args), "seed": args.seed}
    made_with |= {"writing": plain.to_plain(caption_settings(args)), "paint": plain.to_plain(paint_settings(args))}
    same_settings(output / "scenes.settings.json", made_with, f"{output} holds {', '.join(begun)}", fresh=not begun)
    model, found = commands.loader(args), {}
    for name in args.only or TWINS:
        (output / name).mkdir(exist_ok=True)
        found[name] = TWINS[name](args, model, output / name, side)
    kept = output / "result.json"
    before = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    write_whole(kept, json.dumps(before | found, indent=2) + "\n")
    print(json.dumps(found) if args.json else table(found))
    return 0


def table(found: Mapping[str, Figures]) -> str:
    """A line for each benchmark, and below it one for each of its parts."""
    lines = []
    for name, figures in found.items():
        low, high = figures.get("interval", (None, None))
        sure = "" if low is None else f"   95% {low:.3f} to {high:.3f}"
        lines.append(f"{name:28}{figures['score']:9.3f}{sure}")
        lines += [f"  {part:26}{value:9.3f}" for part, value in figures["by"].items()]
    return "\n".join(lines)


def _geneval(args: argparse.Namespace, model: Loader, folder: Path, side: int) -> Figures:
    name = folder.name
    file = folder / {"geneval": "evaluation_metadata.jsonl", "genevalpp": "metadata.jsonl"}[name]
    lines = prompts.metadata(name, args.scenes)
    write_whole(file, "".join(json.dumps(line) + "\n" for line in lines))
    tasks = commands.paintings(_with(args, benchmark=name, prompts=file, output=folder / "paintings"), model)
    return detected.geneval(lines, tasks, folder / "paintings")


def _dpg(args: argparse.Namespace, model: Loader, folder: Path, side: int) -> Figures:
    captions = dpg.prompts(args.scenes)
    dpg.write(captions, folder / "prompts", folder / "dpg_bench.csv")
    own = _with(args, benchmark="dpg", prompts=folder / "prompts", output=folder / "paintings")
    return detected.dpg_bench(captions, commands.paintings(own, model), folder / "paintings")


def _vqa(args: argparse.Namespace, model: Loader, folder: Path, side: int) -> Figures:
    asked.write(args.scenes, folder / "questions.jsonl", side)
    own = {"questions": folder / "questions.jsonl", "output": folder / "answers.jsonl", "question": None}
    found = commands.answers(_with(args, **own, max_new_tokens=_ANSWER_TOKENS, temperature=0.0), model)
    by = {task: row["accuracy"] for task, row in found.pop("tasks").items()}
    del found["judged"]  # of each question, for comparing two runs: the answers' own summary has it
    return {"score": found["accuracy"], "by": by, **found}


def _unified(args: argparse.Namespace, model: Loader, folder: Path, side: int) -> Figures:
    references = folder / "references"
    references.mkdir(exist_ok=True)
    for objects in range(1, 7):
        for i, (scene, _) in enumerate(held_out.draw(_REFERENCES + objects, args.scenes, held_out.of(objects))):
            Image.fromarray(render(scene, side)).save(references / f"{objects}_objects_{i:03d}.png")
    scorers = args.scorer or [(part.name, scorer_folder(part)) for part in DEFAULT_PARTS]  # they know scenes
    own = {"reference": references, "generated": None, "output": folder / "result.json", "scorer": scorers}
    record = commands.reconstructions(_with(args, **own, force=True, cards=200), model)
    interval = record[unified.OWN]["overall_interval"]
    summary = record["summary"]
    return {"score": summary["overall_average"], "interval": interval, "by": summary["average_scores_by_model"]}


TWINS = {"geneval": _geneval, "genevalpp": _geneval, "dpg": _dpg, "vqa": _vqa, "unified": _unified}


def _with(args: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    """The arguments as another command of `uae bench` has them."""
    texts = {name: str(value) if isinstance(value, Path) else value for name, value in changes.items()}
    return argparse.Namespace(**{**vars(args), "rewrite": False, **texts})


def _side(args: argparse.Namespace) -> int:
    """Of pictures, in pixels: what is painted has the same, so that the detector finds what it knows."""
    size = paint_settings(args).size or held_out.SIDE
    sides = (size, size) if isinstance(size, int) else size
    if sides[0] != sides[1]:
        raise ValueError(f"--size is {args.size}, wanted a square: the detector knows no others")
    return sides[0]

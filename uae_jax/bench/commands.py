"""What `uae bench` does. Results go to stdout and into files, progress to stderr."""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tqdm

from uae_jax import plain
from uae_jax.bench import accuracy, gallery, judging, pairing, questions, unified
from uae_jax.bench.asking import Item, ask
from uae_jax.bench.layouts import LAYOUTS, Task
from uae_jax.bench.painting import digest, paint, rewrite
from uae_jax.bench.pairing import Pairing
from uae_jax.bench.repaint import CAPTIONS, PAINTINGS, How, repaint
from uae_jax.commands import caption_settings, load, model_settings, paint_settings
from uae_jax.data.caption_files import same_settings, settings_file, write_whole
from uae_jax.data.lines import numbered_lines
from uae_jax.pipeline import UAE
from uae_jax.rewards.reconstruction import UNIFIED
from uae_jax.rewards.scorers import Scorer
from uae_jax.weights import checkpoint, uae

_SCENE_SCORERS = "scorers of the package, which know the scene world alone; not to be compared with published scores"
Loader = Callable[[], UAE]


def loader(args: argparse.Namespace) -> Loader:
    """Loads the model that the arguments name when it is first called, and keeps it."""
    return functools.cache(functools.partial(load, args, scorers={}))


def run_unified(args: argparse.Namespace) -> int:
    """Scores reconstructions; prints the scores."""
    record = reconstructions(args, loader(args))
    print(table(record))
    print(f"\n{args.output}\n{Path(args.output).with_suffix('.html')}")
    return 0 if record[unified.OWN]["all_pairs"] else 1


def reconstructions(args: argparse.Namespace, model: Loader) -> dict[str, Any]:
    """Paints, unless somebody else has, scores, and writes the gallery and the record, which it returns."""
    output, reference, generated = _places(args)
    folders = scorer_folders(args)
    for name, folder in folders.items():  # before anything is painted
        Scorer.check(folder, name)
    if known := [name for name, folder in folders.items() if _embedded(folder)]:
        print(f"uae: {_SCENE_SCORERS}: {', '.join(known)}", file=sys.stderr)
    about: dict[str, Any] = {"reference": str(reference), "scorers": {name: str(f) for name, f in folders.items()}}
    about["scene_scorers"] = known
    if not args.generated:
        about |= _painted(args, model, reference, output.with_suffix(""))
    about["generated"] = str(generated)
    found = pairing.pair(reference, generated)
    captions = _captions(generated.parent / CAPTIONS, found)
    judges = {name: Scorer.from_pretrained(folder) for name, folder in folders.items()}
    with tqdm.tqdm(total=len(found.pairs), desc="scoring", unit=" pair", file=sys.stderr) as bar:
        scores, unreadable = unified.score(found, judges, bar.update)
    record = unified.result(scores, found, unreadable, about)
    shown = gallery.to_html(record, found, captions, args.cards)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output.with_suffix(".html"), shown)
    write_whole(output, json.dumps(record, indent=2) + "\n")
    return record


def run_prompts(args: argparse.Namespace) -> int:
    """Paints a benchmark's prompts; prints how many paintings there are."""
    tasks = paintings(args, loader(args))
    count = sum(task.copies for task in tasks)
    print(f"{args.output}: {count} paintings in {len(tasks)} files, as its scorer takes them")
    return 0


def paintings(args: argparse.Namespace, model: Loader) -> list[Task]:
    """Paints the prompts of a benchmark into the folder that its official scorer takes, and checks that folder."""
    layout, prompts, output = LAYOUTS[args.benchmark], Path(args.prompts).expanduser(), Path(args.output).expanduser()
    tasks, settings = layout.tasks(prompts), paint_settings(args)
    if args.benchmark == "dpg" and isinstance(settings.size, tuple) and settings.size[0] != settings.size[1]:
        raise ValueError(f"--size is {args.size}, wanted a square: DPG-Bench cuts square grids")
    model_is = model_settings(args)
    made_with = {"benchmark": args.benchmark, "prompts": str(prompts.resolve()), "tasks": digest(tasks), **model_is}
    made_with |= {"seed": args.seed, "rewrite": args.rewrite, "paint": plain.to_plain(settings)}
    if strangers := layout.strangers(tasks, output):
        raise ValueError(
            f"{_some([str(path) for path in strangers])}: not of this benchmark, whose scorer would take it for a "
            "painting; keep it elsewhere"
        )
    there = [task for task in tasks if (output / task.file).exists()]
    rewritten = output.with_name(output.name + ".rewritten.jsonl")
    output.parent.mkdir(parents=True, exist_ok=True)
    # Not in it: scorers take whatever is there for paintings.
    same_settings(settings_file(output), made_with, f"{output} has {len(there)} files painted", fresh=not there)
    if args.rewrite:
        tasks = rewrite(model, tasks, rewritten, model_is, args.seed)
    layout.prepare(prompts, output)
    with tqdm.tqdm(total=len(tasks), desc=f"painting {args.benchmark}", unit=" file", file=sys.stderr) as bar:
        paint(model, tasks, output, settings, args.seed, bar.update)
    if faults := layout.check(prompts, output):
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"{output} is not as its scorer wants it: {'; '.join(faults[:5])}{more}")
    return tasks


def run_vqa(args: argparse.Namespace) -> int:
    """Asks questions about images; prints the accuracy."""
    found = answers(args, loader(args))
    print(json.dumps(found) if args.json else accuracy.table(found))
    return 1 if found["unanswered"] else 0


def answers(args: argparse.Namespace, model: Loader) -> dict[str, Any]:
    """Asks all questions that have no answer yet; returns, and keeps, `accuracy.summary`."""
    file, output = Path(args.questions).expanduser(), Path(args.output).expanduser()
    asked = questions.read(file)
    said = _ask(args, model, [Item(question.image, question.asked) for question in asked], output)
    found = accuracy.summary(asked, said)
    write_whole(output.with_suffix(".summary.json"), json.dumps(found, indent=2) + "\n")
    return found


def run_judge(args: argparse.Namespace) -> int:
    """Judges a folder of DPG-Bench or GenEval by asking the encoder."""
    file, images, output = (Path(path).expanduser() for path in (args.questions, args.images, args.output))
    pictures = judging.dpg_pictures(file, images) if args.benchmark == "dpg" else judging.geneval_pictures(file, images)
    items = pictures.items
    if not items:
        raise ValueError(f"{images} has no picture of {file}; wanted what `uae bench {args.benchmark}` paints")
    figures = pictures.judged(_ask(args, loader(args), items, output))
    found = {"judge": f"{args.model} asked, not the official scorer", **figures}
    write_whole(output.with_suffix(".summary.json"), json.dumps(found, indent=2) + "\n")
    print(json.dumps(found) if args.json else judging.table(found, args.benchmark))
    return 1 if found["missing"] or found["unreadable"] else 0


def _ask(args: argparse.Namespace, model: Loader, items: list[Item], output: Path) -> dict[int, str]:
    settings = caption_settings(args)
    made_with = {"questions": str(Path(args.questions).expanduser().resolve()), **model_settings(args)}
    made_with |= {"seed": args.seed, "writing": plain.to_plain(settings)}
    made_with |= {"images": str(Path(args.images).expanduser().resolve())} if "images" in args else {}
    return ask(model, items, output, settings, args.seed, made_with)


def run_compare(args: argparse.Namespace) -> int:
    """Prints how the second of two records differs from the first."""
    records = [_read(Path(file)) for file in (args.first, args.second)]
    if all(map(accuracy.is_summary, records)):
        compared = accuracy.compare(*records)
        print(json.dumps(compared) if args.json else accuracy.compared_table(compared))
        return 0
    scores = [unified.check(record, file) for record, file in zip(records, (args.first, args.second), strict=True)]
    found = unified.compare(*scores)
    scenes = [_scene_scorers(record) for record in records]
    if args.json:
        told = found.to_json()
        told[unified.OWN]["scene_scorers"] = dict(zip(("first", "second"), scenes, strict=True))
        print(json.dumps(told))
        return 0
    pairs = found.rows["overall"]["pairs"]
    print(f"{'':12}{'first':>9}{'second':>9}{'difference':>12}   95% interval, {pairs} pairs")
    for name, row in found.rows.items():
        low, high = row["interval"]
        print(f"{name:12}{row['first']:9.4f}{row['second']:9.4f}{row['difference']:+12.4f}   [{low:+.4f}, {high:+.4f}]")
    for line in _overall_is(found.rows, found.overall_of):
        print(line)
    for file, known, lacks, alone in zip((args.first, args.second), scenes, found.lacking, found.alone, strict=True):
        if known:
            print(f"{file}: {_SCENE_SCORERS}: {', '.join(known)}")
        if alone:
            print(f"only {file} has {', '.join(alone)}")
        if lacks:
            whole = len(found.rows) - 1  # without "overall"
            names = [name if len(of) == whole else f"{name} ({', '.join(of)})" for name, of in lacks.items()]
            print(f"{len(names)} left out, without a score in {file}: {_some(names)}")
    return 0


def scorer_folders(args: argparse.Namespace) -> dict[str, Path]:
    """Name -> folder: those that are named, else those that come with the model.

    Raises:
      ValueError: if there are none, or two of one name.
    """
    names = [name for name, _ in args.scorer]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--scorer names {', '.join(twice)} more than once, wanted each name once")
    if args.scorer:
        return {name: Path(folder).expanduser() if os.path.exists(folder) else folder for name, folder in args.scorer}
    root = checkpoint.resolve(args.model) / uae.SCORERS
    found = {name: root / name for name in UNIFIED if (root / name).is_dir()}
    if not found:
        raise ValueError(
            f"{args.model} brings no scorers; name them, e.g. --scorer clip=openai/clip-vit-large-patch14, or, of the "
            "package, which know the scene world alone, --scorer clip=tiny/scorers/clip"
        )
    return found


def table(record: Mapping[str, Any]) -> str:
    """A line for each scorer and one for all, and what is amiss."""
    own, summary = record[unified.OWN], record["summary"]
    lines = [f"{'scorer':12}{'mean':>9}   95% interval"]
    rows = [(name, mean, own["interval_by_model"][name]) for name, mean in summary["average_scores_by_model"].items()]
    for name, mean, (low, high) in [*rows, ("overall", summary["overall_average"], own["overall_interval"])]:
        lines.append(f"{name:12}{mean:9.4f}   {low:.4f} to {high:.4f}")
    lines += _overall_is(record["model_types"], own["overall_of"])
    if known := _scene_scorers(record):
        lines.append(f"{_SCENE_SCORERS}: {', '.join(known)}")
    for what, names in (("without a painting", own["missing"]), ("unreadable", list(own["unreadable"].values()))):
        if names:
            lines.append(f"{len(names)} {what}: {_some(names)}")
    return "\n".join(lines)


def _overall_is(judged: Iterable[str], counts: Sequence[str]) -> list[str]:
    """What there is to say of a mean that is not of the four scorers, or not of all that judged."""
    absent = [name for name in UNIFIED if name not in judged]
    beside = [name for name in judged if name not in counts and name != "overall"]
    lines = [f"overall is NOT the unified score: {', '.join(absent)} did not judge"] if absent else []
    return [*lines, f"overall leaves {', '.join(beside)} out"] if beside else lines


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _scene_scorers(record: Mapping[str, Any]) -> list[str]:
    """Scorers of the package that a record is by; only ours say so."""
    own = record.get(unified.OWN)
    return list(own.get("scene_scorers", ())) if isinstance(own, dict) else []


def _embedded(folder: Path | str) -> bool:
    """Whether a scorer is one of the package."""
    return checkpoint.resolve(folder).resolve().is_relative_to(checkpoint.EMBEDDED.resolve())


def _places(args: argparse.Namespace) -> tuple[Path, Path, Path]:
    """The record, the folder of references and that of their paintings, having seen that none gets lost or mixed up."""
    output, reference = Path(args.output).expanduser(), Path(args.reference).expanduser()
    if output.suffix != ".json":
        raise ValueError(f"--output is {args.output}, wanted FILE.json: FILE.html and the folder FILE lie beside it")
    for file in (output, output.with_suffix(".html")):
        if file.exists() and not args.force:
            raise FileExistsError(f"{file} would be overwritten; choose another --output, or --force")
    generated = Path(args.generated).expanduser() if args.generated else output.with_suffix("") / PAINTINGS
    if generated.resolve() in (reference.resolve(), *reference.resolve().parents):
        raise ValueError(
            f"--reference {args.reference} is, or lies in, the folder of paintings {generated}, so that references "
            "would be taken for paintings of themselves; keep each in a folder of its own"
        )
    if reference.resolve() in generated.resolve().parents:
        option, value = ("generated", args.generated) if args.generated else ("output", args.output)
        raise ValueError(
            f"--{option} is {value}, inside --reference {args.reference}, so that paintings would be taken for "
            f"references; choose another --{option}"
        )
    return output, reference, generated


def _painted(args: argparse.Namespace, model: Loader, reference: Path, work: Path) -> dict[str, Any]:
    """Captions and paints into the work folder; returns what that was done with."""
    how = How(caption_settings(args), paint_settings(args), args.interface, args.seed)
    about = model_settings(args)
    with tqdm.tqdm(total=len(pairing.images_in(reference)), desc="painting", unit=" image", file=sys.stderr) as bar:
        repaint(model, reference, work, how, about, bar.update)
    return {**about, **plain.to_plain(how)}


def _captions(file: Path, found: Pairing) -> dict[str, str]:
    """Captions by name of the reference, as far as there are any; what is no file of captions is left alone."""
    if not file.is_file():
        return {}
    try:
        lines = [json.loads(line) for _, line in numbered_lines(file)]
        told = {str((file.parent / line["image"]).resolve()): str(line["caption"]) for line in lines}
    except (ValueError, TypeError, KeyError):
        print(f"uae: {file} holds no captions of images; pairs are shown without", file=sys.stderr)
        return {}
    by_name = {name: told.get(str(reference.resolve())) for name, (reference, _) in found.pairs.items()}
    return {name: caption for name, caption in by_name.items() if caption}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.expanduser().read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{file} is no JSON") from None

"""What `uae data inspect` and `uae data caption` do."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tqdm
from PIL import Image

from uae_jax import commands
from uae_jax.commands import WINDOW, WINDOW_PIXELS, Report
from uae_jax.data import contact_sheet
from uae_jax.data.caption_files import CaptionWriter, JsonLines, TextFiles, refuse_one_text_for_two
from uae_jax.data.config import DataConfig, SourceConfig
from uae_jax.data.images import ImageError, open_image
from uae_jax.data.inspect import Inspection, to_text
from uae_jax.data.inspect import inspect as inspect_source
from uae_jax.data.records import Source
from uae_jax.data.sources import open_source
from uae_jax.data.sources.folder import FolderSource
from uae_jax.data.sources.table import RowSource
from uae_jax.engine import CaptionSettings

SHEET, FACTS = "contact_sheet.html", "inspection.json"


def inspect(args: argparse.Namespace) -> int:
    """Prints what a source holds, and writes it to look at."""
    config = SourceConfig(
        path=args.source, kind=args.kind, image=args.image, captions=tuple(args.captions), split=args.split
    )
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit is {args.limit}, wanted at least 1")
    output = Path(args.output) if args.output else None
    if output is not None:
        commands.refuse_overwriting([output / SHEET, output / FACTS], args.force)
    source = open_source(config)
    count_tokens = commands.token_counter(args.model) if args.model else None
    if output is not None:
        commands.make_output(output)
    total = len(source) if args.limit is None else min(args.limit, len(source))
    with tqdm.tqdm(total=total, unit=" record", desc="inspecting", file=sys.stderr) as bar:
        result = inspect_source(
            source,
            limit=args.limit,
            cards=args.cards if output else 0,
            images=bool(args.image),
            count_tokens=count_tokens,
            progress=bar.update,
        )
    facts = json.dumps(result.to_json(), indent=2)
    print(facts if args.json else to_text(result).encode("utf-8", "backslashreplace").decode("utf-8"))
    for warning in _warnings(result, source):
        print(f"uae: {warning}", file=sys.stderr)
    if output is not None:
        (output / FACTS).write_text(facts + "\n", encoding="utf-8")
        (output / SHEET).write_text(contact_sheet.to_html(result), encoding="utf-8")
        print(f"uae: wrote {output / SHEET}", file=sys.stderr)
    return 0 if result.tally.used or result.sizes else 1


def _warnings(result: Inspection, source: Source) -> Iterator[str]:
    """What training would stumble over."""
    tally, allowed = result.tally, DataConfig().max_bad_fraction
    if isinstance(source, RowSource) and not source.captions:
        columns = ", ".join(source.columns)
        yield f"no column is called as captions are; name those that are, --captions COLUMN; all: {columns}"
    if not tally.used and not result.sizes:
        yield f"nothing usable in {result.source}"
    elif tally.bad_fraction > allowed:
        images = f"; stages that need no captions can use {len(result.sizes)}" if len(result.sizes) > tally.used else ""
        yield (
            f"{tally.bad} of {tally.seen} records are bad ({tally.bad_fraction:.0%}); training ends where more than "
            f"{allowed:.0%} are (data.max_bad_fraction){images}"
        )


def caption(args: argparse.Namespace) -> int:
    """Writes a caption of each image of a folder, but for those that have one."""
    folder = Path(args.folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no folder, wanted one of images; `uae caption` takes single files")
    files = [folder / name for name in FolderSource(str(folder)).names]
    settings = commands.caption_settings(args)
    with _writer(args, folder, settings) as writer:
        waiting = [file for file in files if not writer.has(file)]
        if len(waiting) < len(files):
            print(f"uae: {len(files) - len(waiting)} of {len(files)} have their captions", file=sys.stderr)
        if not waiting:
            return 0
        if args.txt:
            refuse_one_text_for_two(waiting)
        uae = commands.load(args, scorers={})
        with Report("captioned", len(waiting)) as report:
            for first, window in _windows(files, writer, report):
                images = [image for _, image in window]
                for place, text in uae.iter_captions(images, settings, seed=args.seed, first=first):
                    file = window[place][0]
                    writer.write(file, text)
                    report.done(report.good, f"{file}\t{' '.join(text.split())}")
    return report.exit_code


def _windows(
    files: Sequence[Path], writer: CaptionWriter, report: Report
) -> Iterator[tuple[int, list[tuple[Path, Image.Image]]]]:
    """Opens files without a caption, some at a time; yields the number of the first, and the images.

    An image's number, which its random draws come from, is its place among all good images of the folder, so that a
    run that was interrupted writes what one that was not would have.
    """
    number, window, pixels = 0, [], 0
    for file in files:
        done = writer.has(file)
        try:
            image = None if done else open_image(file)
        except ImageError as error:
            report.skip(str(error))
            continue
        if not done:
            window.append((file, image))
            pixels += image.width * image.height
        number += 1
        if window and (done or len(window) == WINDOW or pixels >= WINDOW_PIXELS):
            yield number - done - len(window), window
            window, pixels = [], 0
    if window:
        yield number - len(window), window


def _writer(args: argparse.Namespace, folder: Path, settings: CaptionSettings) -> CaptionWriter:
    if args.txt:
        return TextFiles()
    output = Path(args.output).expanduser() if args.output else folder / "captions.jsonl"
    decided = dataclasses.asdict(settings) | {"prompt": settings.question}
    return JsonLines(output, {**commands.model_settings(args), "seed": args.seed, **decided})

"""What `uae caption`, `uae generate` and `uae reconstruct` do: files in, results out, item by item.

Results are written and printed as they are done. An input that cannot be used is reported and skipped; the last line
counts both, and then the exit code is 1. What is asked is checked before the model is loaded: settings, and that no
file is overwritten unless forced.
"""

import argparse
import contextlib
import glob
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import tqdm
from PIL import Image

from uae_jax import paths
from uae_jax.data.images import SUFFIXES, ImageError, open_image
from uae_jax.data.lines import numbered_lines
from uae_jax.data.tokenizers import load_tokenizer
from uae_jax.data.validity import CaptionError, usable_caption
from uae_jax.defaults import Defaults, given
from uae_jax.engine import CaptionSettings, PaintSettings, check_sides
from uae_jax.parallel.mesh import make_mesh
from uae_jax.pipeline import UAE, fastest_dtype, refuse_long
from uae_jax.weights import checkpoint, fingerprint
from uae_jax.weights import uae as uae_weights
from uae_jax.weights.progress import reading_bar

WINDOW = 64  # images that are open at a time
WINDOW_PIXELS = 200_000_000  # and how large they may be together


def caption(args: argparse.Namespace) -> int:
    """Prints a caption per image."""
    files, settings = image_files(args.images), caption_settings(args)
    refuse_none(files)
    uae = load(args, scorers={})
    with Report("captioned", len(files)) as report:
        for first, window in _windows(files, report):
            images = [image for _, image in window]
            for place, text in uae.iter_captions(images, settings, seed=args.seed, first=first):
                file = str(window[place][0])
                line = f"{file}\t{' '.join(text.split())}"
                report.done(first + place, {"image": file, "caption": text} if args.json else line)
    return report.exit_code


def generate(args: argparse.Namespace) -> int:
    """Writes an image per prompt."""
    prompts, output = read_prompts(args), Path(args.output).expanduser()
    targets = [output / f"{i:05d}.png" for i in range(len(prompts))]
    refuse_overwriting(targets, args.force)
    settings = paint_settings(args)
    encoder, *_ = uae_weights.read_sizes(args.model)
    refuse_long(prompts, encoder, lambda text: token_counter(args.processor or args.model)(text))
    make_output(output)
    uae = load(args, scorers={})
    with Report("painted", len(prompts)) as report:
        for place, image in uae.iter_paintings(prompts, settings, seed=args.seed):
            target = targets[place]
            save(image, target)
            report.done(place, {"prompt": prompts[place], "image": str(target)} if args.json else str(target))
    return report.exit_code


def reconstruct(args: argparse.Namespace) -> int:
    """Writes a painting per image, and prints its caption and scores, one JSON line each."""
    files, output = image_files(args.images), Path(args.output).expanduser()
    targets = dict(zip(files, painting_files(files, output), strict=True))
    refuse_overwriting(targets.values(), args.force, inputs=files)
    refuse_none(files)
    writing, painting = caption_settings(args), paint_settings(args)
    make_output(output)
    uae = load(args, scorers=dict(args.scorer) or None)
    with Report("reconstructed", len(files)) as report:
        for first, window in _windows(files, report):
            images = [image for _, image in window]
            results = uae.iter_reconstructions(
                images, writing, painting, interface=args.interface, seed=args.seed, first=first
            )
            for place, result in results:
                file = window[place][0]
                save(result.image, targets[file])
                record = {
                    "image": str(file),
                    "caption": result.caption,
                    "painting": str(targets[file]),
                    "scores": result.scores,
                }
                report.done(first + place, record)
    return report.exit_code


def load(args: argparse.Namespace, **settings) -> UAE:
    """Loads the model that the arguments name, with a progress bar."""
    dtype = None if args.dtype == "auto" else args.dtype
    folder = checkpoint.resolve(args.model)
    with reading_bar(folder) as progress:
        settings |= {"processor": args.processor, "memory_gb": args.memory_gb, "staged": args.place == "host"}
        settings["mesh"] = make_mesh(data=1, fsdp=-1) if args.place == "split" else None
        return UAE.from_pretrained(folder, dtype=dtype, progress=progress, **settings)


def model_settings(args: argparse.Namespace) -> dict[str, str | None]:
    """Which model `load` would load, as it is now, and how it computes: for what is made with it to be kept beside.

    Raises:
      WeightsError: if there is none.
    """
    processor = fingerprint.of_processor(args.processor) if args.processor else None
    weights = fingerprint.of_model(args.model)
    about = {"model": args.model, "weights": weights, "processor": processor, "dtype": args.dtype}
    return about | {"computed_in": fastest_dtype() if args.dtype == "auto" else args.dtype}


def token_counter(model: str) -> Callable[[str], int]:
    """Counts tokens as the encoder does: special tokens in a text are plain text.

    Raises:
      ValueError: if the model has no tokenizer.
    """
    root = checkpoint.resolve(model)
    folders = [folder for folder in (root / "llm_model", root / "files" / "llm_model", root) if _has_tokenizer(folder)]
    if not folders:
        raise ValueError(f"{model}: no tokenizer.json in it, nor in its llm_model")
    tokenizer = load_tokenizer(folders[0])
    return lambda text: len(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()


def save(image: Image.Image, target: Path) -> None:
    """Writes a PNG, or a JPEG where the name says so, whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    kind, options = ("JPEG", {"quality": 95}) if target.suffix.lower() in (".jpg", ".jpeg") else ("PNG", {})
    try:
        with paths.naming(target):
            image.save(part, kind, **options)
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def image_files(arguments: Iterable[str]) -> list[Path]:
    """Files, folders (all images in them) and patterns -> files, each once, in order.

    Raises:
      ValueError: if a folder or pattern has no image in it.
    """
    files: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        elif not path.exists() and glob.has_magic(argument):
            found = sorted(Path(file) for file in glob.glob(str(path), recursive=True) if not Path(file).is_dir())
        else:
            found = [path]
        if not found:
            below = path.is_dir() and any(file.is_dir() for file in path.iterdir())
            deeper = (
                f"; folders in it are not looked into: '{argument.rstrip('/')}/**/*.jpg' names what is" if below else ""
            )
            raise ValueError(f"{argument}: no image there, wanted files ending in {', '.join(SUFFIXES)}{deeper}")
        files |= dict.fromkeys(found)
    return list(files)


def refuse_none(files: Sequence[Path]) -> None:
    """Raises `ValueError` where none of the files is there; some that are not, among others, are skipped later."""
    if not any(file.exists() for file in files):
        others = ", nor any of the others" if len(files) > 1 else ""
        raise ValueError(f"{files[0]}: no such file{others}; wanted images")


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts given, or those of a file: a line each, or JSON lines with "prompt" (or "caption").

    Raises:
      ValueError: if there are none, or a line holds none; names it.
    """
    if args.prompts is None:
        for number, prompt in enumerate(args.prompt, start=1):
            refuse_no_text(f"prompt {number}", prompt)
        return list(args.prompt)
    prompts = []
    for number, line in numbered_lines(Path(args.prompts).expanduser()):
        where = f"{args.prompts}:{number}"
        if line.startswith("["):
            with contextlib.suppress(json.JSONDecodeError):
                json.loads(line)
                raise ValueError(f"{where}: a JSON list, wanted a line for each prompt, plain or JSON with 'prompt'")
        if line.startswith("{"):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error})") from None
            line = record.get("prompt", record.get("caption"))
            if not isinstance(line, str) or not line.strip():
                raise ValueError(f"{where}: no 'prompt' or 'caption' in it")
        refuse_no_text(where, line)
        prompts.append(line)
    if not prompts:
        raise ValueError(f"{args.prompts}: no prompt in it")
    return prompts


def refuse_no_text(where: str, text: str | None, blank: bool = False) -> None:
    """Raises `ValueError` where a tokenizer would: half a character, NUL; and where there is nothing, unless it may."""
    try:
        usable_caption("" if text is None else text)
    except CaptionError as error:
        if error.kind != "blank":
            raise ValueError(f"{where}: {str(error).replace('caption', 'text')}") from None
        if not blank:
            raise ValueError(f"{where} is empty, wanted what to paint") from None


def refuse_overwriting(targets: Iterable[Path], force: bool, inputs: Iterable[Path] = ()) -> None:
    """Sees to it that nothing is lost.

    Raises:
      FileExistsError: if a target exists and `force` was not given, or is an input, forced or not.
    """
    there = [target for target in targets if target.exists()]
    originals = {file.resolve() for file in inputs} if there else set()
    for target in there:
        if target.resolve() in originals:
            raise FileExistsError(f"{target} is one of the images; choose another --output")
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(f"{there[0]}{more} would be overwritten; choose another --output, or --force")


def make_output(folder: Path) -> None:
    """Makes the folder that results go into; for before there are any.

    Raises:
      ValueError: if it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be made ({error.strerror}); choose another --output") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder}: cannot be written to; choose another --output")


def painting_files(files: list[Path], output: Path) -> list[Path]:
    """A .png in the output folder for each file; equal stems are numbered."""
    names: dict[str, None] = {}
    for file in files:
        name, number = file.stem, 1
        while name in names:
            number += 1
            name = f"{file.stem}-{number}"
        names[name] = None
    return [output / f"{name}.png" for name in names]


class Report(contextlib.AbstractContextManager):
    """Prints results in the order of the inputs, as soon as all before them are there, and counts what went wrong.

    A progress bar goes to stderr. On the way out, early or not, what is held back is printed.
    """

    def __init__(self, what: str, total: int):
        self.what, self.good, self.bad = what, 0, 0
        self._held: dict[int, dict | str] = {}
        self._bar = tqdm.tqdm(total=total, unit=" image", desc=what, file=sys.stderr)

    def done(self, number: int, result: dict | str) -> None:
        """Takes the result of the good input of this number, from 0: a record for a JSON line, or a line."""
        self._held[number] = result
        self._bar.update()
        while self.good in self._held:
            self._print(self._held.pop(self.good))

    def skip(self, reason: str) -> None:
        """Prints why one input was skipped, on stderr."""
        self.bad += 1
        self._bar.total -= 1
        with tqdm.tqdm.external_write_mode(sys.stderr):
            print(f"uae: skipped: {reason}", file=sys.stderr, flush=True)

    def __exit__(self, *_) -> None:
        """Prints what is left, and both counts on stderr."""
        for number in sorted(self._held):
            self._print(self._held[number])
        self._bar.close()
        print(f"uae: {self.good} {self.what}, {self.bad} skipped", file=sys.stderr)

    @property
    def exit_code(self) -> int:
        return 1 if self.bad else 0

    def _print(self, result: dict | str) -> None:
        self.good += 1
        text = result if isinstance(result, str) else _json_line(result)
        with tqdm.tqdm.external_write_mode(sys.stdout):
            print(text.encode("utf-8", "backslashreplace").decode("utf-8"), flush=True)  # file names may be no text


def _json_line(record: dict) -> str:
    """JSON that is one line to everybody: some readers break lines at these three, which JSON lets stand."""
    line = json.dumps(record, ensure_ascii=False)
    return line.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _windows(files: list[Path], report: Report) -> Iterator[tuple[int, list[tuple[Path, Image.Image]]]]:
    """Opens files some at a time; yields the number of the first, counting good ones only, and the images."""
    first, window, pixels = 0, [], 0
    for file in files:
        try:
            image = open_image(file)
        except ImageError as error:
            report.skip(str(error))
            continue
        window.append((file, image))
        pixels += image.width * image.height
        if len(window) == WINDOW or pixels >= WINDOW_PIXELS:
            yield first, window
            first, window, pixels = first + len(window), [], 0
    if window:
        yield first, window


def caption_settings(args: argparse.Namespace) -> CaptionSettings:
    """The options of captioning, checked."""
    values = dict(
        prompt=args.question,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
    )
    refuse_no_text("--question", args.question, blank=True)
    given(CaptionSettings(), **values)  # refuses what is out of range before a model is looked for
    return given(Defaults.of(args.model).caption, **values)


def paint_settings(args: argparse.Namespace) -> PaintSettings:
    """The options of painting, checked, a size against what the model can paint; reads no weights."""
    values = dict(
        steps=args.steps,
        guidance=args.guidance,
        size=None if args.size is None else _sides(args.size),
        negative_prompt=args.negative,
        conditioning=args.conditioning,
    )
    refuse_no_text("--negative", args.negative, blank=True)
    given(PaintSettings(), **values)
    settings = given(Defaults.of(args.model).paint, **values)
    if settings.size is not None:
        height, width = (settings.size,) * 2 if isinstance(settings.size, int) else settings.size
        check_sides(height, width, *uae_weights.read_sizes(args.model)[1:])
    return settings


def _sides(text: str) -> tuple[int, int]:
    height, mark, width = text.partition("x")
    try:
        return int(height), int(width if mark else height)
    except ValueError:
        raise ValueError(f"--size is {text!r}, wanted pixels of a side, or HEIGHTxWIDTH") from None

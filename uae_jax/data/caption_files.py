"""Where captions of a folder are written, such that a run that was killed goes on where it stopped.

Each caption is on disk before the next is begun: a line of a JSON lines file, which is a table source, or a `.txt`
beside its image, which makes the folder a folder source.
"""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from uae_jax import paths

# Settings that were not recorded from the first version on.
LATER = ("weights", "processor", "tasks", "references", "dtype", "computed_in")


class CaptionWriter(Protocol):
    """Takes captions of images, by their files."""

    def __enter__(self) -> "CaptionWriter": ...

    def __exit__(self, *exception: Any) -> None: ...

    def has(self, image: Path) -> bool:
        """Whether an image has its caption already."""
        ...

    def write(self, image: Path, caption: str) -> None:
        """Puts one caption on disk."""
        ...


class KeyedLines:
    """A text for each of many keys, a line of JSON each: {KEY: ..., VALUE: ...}.

    What the texts were written with is kept beside, in FILE.settings.json: a file of two minds helps nobody.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, key: str, value: str, texts: str):
        """Names the file, its two fields, and what errors call the texts; `with` opens it."""
        self.path, self._settings, self._key, self._value, self._called = path, settings, key, value, texts
        self.texts: dict[str, str] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> "KeyedLines":
        """Opens the file, or makes it; a last line that was cut off is dropped.

        Raises:
          ValueError: if it holds something else, was written with other settings, or another process is writing it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"{self.path}: another process is writing it; wait, or choose another --output") from None
        try:
            whole = self._read()
            told = f"{self.path} has {len(self.texts)} {self._called} written"
            same_settings(settings_file(self.path), self._settings, told, fresh=not self.texts)
            self._file.truncate(whole)
        except ValueError:
            self._file.close()
            raise
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.close()

    def add(self, key: str, text: str) -> None:
        """Appends a line."""
        with paths.naming(self.path):
            self._file.write(json.dumps({self._key: key, self._value: text}).encode("ascii") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.texts[key] = text

    def _read(self) -> int:
        """Takes what is there; returns how long it is without a line that was cut off."""
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n") and self._is_ours(line):
                break
            try:
                record = json.loads(line)
                self.texts[record[self._key]] = record[self._value]
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{self.path}:{number}: not a line of {self._key}s and {self._called}; choose another --output"
                ) from None
            whole += len(line)
        return whole

    def _is_ours(self, line: bytes) -> bool:
        """Whether what has no end was begun here: another's file, of JSON in one line, is not to be cut off."""
        begun = f'{{"{self._key}": "'.encode()
        return line.startswith(begun) or begun.startswith(line)


class JsonLines(KeyedLines):
    """{"image", "caption"} a line, image paths relative to the file's folder where they lie in it, else absolute."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        """Names the file; `with` opens it."""
        super().__init__(path, settings, key="image", value="caption", texts="captions")

    def has(self, image: Path) -> bool:
        """Whether an image has a line."""
        return self._name(image) in self.texts

    def write(self, image: Path, caption: str) -> None:
        """Appends a line."""
        self.add(self._name(image), caption)

    def _name(self, image: Path) -> str:
        folder, image = os.path.abspath(self.path.parent), os.path.abspath(image)
        return os.path.relpath(image, folder) if image.startswith(folder + os.sep) else image


class TextFiles:
    """A `.txt` beside each image; what is there is never overwritten."""

    def __enter__(self) -> "TextFiles":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def has(self, image: Path) -> bool:
        """Whether an image has a text."""
        return _text_of(image).exists()

    def write(self, image: Path, caption: str) -> None:
        """Writes a text."""
        write_whole(_text_of(image), caption + "\n")


def refuse_one_text_for_two(images: Iterable[Path]) -> None:
    """Raises `ValueError` where two images, as a.jpg and a.png, would have the same `.txt`: one caption would go."""
    first: dict[Path, Path] = {}
    for image in images:
        text = _text_of(image)
        if text in first:
            raise ValueError(
                f"{first[text]} and {image}: captions of both would be {text.name}; rename one, or leave out --txt, "
                "which writes JSON lines"
            )
        first[text] = image


def _text_of(image: Path) -> Path:
    return image.with_suffix(".txt")


def same_settings(beside: Path, settings: dict[str, Any], told: str, fresh: bool) -> None:
    """Keeps what results are made with in a file beside them, or sees that it is what they were made with before.

    What was not recorded at first, `LATER`, a file may lack: it is taken to have been as it is now, and kept.

    Args:
      beside: the file.
      settings: of now, as JSON has them.
      told: begins the error: what is there already.
      fresh: there is nothing yet, so whatever the file says is forgotten.

    Raises:
      ValueError: if they are others, or there is something but no file to say what it was made with.
    """
    if fresh:
        write_whole(beside, json.dumps(settings, indent=2) + "\n")
        return
    if not beside.exists():
        raise ValueError(f"{told}, and no {beside} that says with what; put it back, or choose another --output")
    try:
        stored = dict(json.loads(beside.read_text(encoding="utf-8")))
    except ValueError:
        raise ValueError(f"{beside} holds no settings; put back what it was, or choose another --output") from None
    unknown = {key: settings[key] for key in LATER if key in settings and key not in stored}
    stored |= unknown
    changed = [f"{k} {stored.get(k)!r}, now {v!r}" for k, v in settings.items() if stored.get(k) != v]
    if changed:
        raise ValueError(
            f"{told} with other settings ({'; '.join(changed)}); choose another --output, or the same settings"
        )
    if unknown:
        write_whole(beside, json.dumps(stored, indent=2) + "\n")


def settings_file(path: Path) -> Path:
    """Where `same_settings` keeps what a file or folder was made with: beside it."""
    return path.with_name(path.name + ".settings.json")


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with paths.naming(path), part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

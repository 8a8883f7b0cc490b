"""Where captions of a folder are written, such that a run that was killed goes on where it stopped.

Each caption is on disk before the next is begun: a line of a JSON lines file, which is a table source, or a `.txt`
beside its image, which makes the folder a folder source.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Protocol


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


class JsonLines:
    """{"image", "caption"} a line, image paths relative to the file's folder where they lie in it, else absolute.

    What the captions were written with is kept beside, in FILE.settings.json: a file of two minds helps nobody.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        """Names the file; `with` opens it."""
        self.path, self._settings = path, settings
        self._done: set[str] = set()
        self._file: BinaryIO | None = None

    def __enter__(self) -> "JsonLines":
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
            self._read()
            self._check_settings()
        except ValueError:
            self._file.close()
            raise
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.close()

    def has(self, image: Path) -> bool:
        """Whether an image has a line."""
        return self._name(image) in self._done

    def write(self, image: Path, caption: str) -> None:
        """Appends a line."""
        name = self._name(image)
        self._file.write(json.dumps({"image": name, "caption": caption}).encode("ascii") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._done.add(name)

    def _name(self, image: Path) -> str:
        folder, image = os.path.abspath(self.path.parent), os.path.abspath(image)
        return os.path.relpath(image, folder) if image.startswith(folder + os.sep) else image

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                name, _ = record["image"], record["caption"]
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{self.path}:{number}: not a line of images and captions; choose another --output"
                ) from None
            self._done.add(name)
            whole += len(line)
        self._file.truncate(whole)

    def _check_settings(self) -> None:
        beside = self.path.with_name(self.path.name + ".settings.json")
        told = f"{self.path} has {len(self._done)} captions written"
        same_settings(beside, self._settings, told, fresh=not self._done)


class TextFiles:
    """A `.txt` beside each image; what is there is never overwritten."""

    def __enter__(self) -> "TextFiles":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def has(self, image: Path) -> bool:
        """Whether an image has a text."""
        return image.with_suffix(".txt").exists()

    def write(self, image: Path, caption: str) -> None:
        """Writes a text."""
        write_whole(image.with_suffix(".txt"), caption + "\n")


def same_settings(beside: Path, settings: dict[str, Any], told: str, fresh: bool) -> None:
    """Keeps what results are made with in a file beside them, or sees that it is what they were made with before.

    Args:
      beside: the file; without one there is nothing to compare with.
      settings: of now, as JSON has them.
      told: begins the error: what is there already.
      fresh: there is nothing yet, so whatever the file says is forgotten.

    Raises:
      ValueError: if they are others.
    """
    if fresh or not beside.exists():
        write_whole(beside, json.dumps(settings, indent=2) + "\n")
        return
    stored = json.loads(beside.read_text())
    changed = [f"{k} {stored.get(k)!r}, now {v!r}" for k, v in settings.items() if stored.get(k) != v]
    if changed:
        raise ValueError(
            f"{told} with other settings ({'; '.join(changed)}); choose another --output, or the same settings"
        )


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

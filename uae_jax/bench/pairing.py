"""Which generated image belongs to which reference, by the rules of Unified-Bench's published code."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from uae_jax.data.images import SUFFIXES

PREFIX = "recon_"


@dataclasses.dataclass(frozen=True)
class Pairing:
    """What was found.

    Attributes:
      pairs: name of a reference -> its file and that of its painting.
      missing: names of references without a painting.
      unused: generated files that belong to no reference.
    """

    pairs: dict[str, tuple[Path, Path]]
    missing: tuple[str, ...]
    unused: tuple[Path, ...]


# First things first: the same place in the folder, then the same name, the same stem, and the stem behind the prefix.
# Each rule: what a painting is found by, and what is looked for given a reference.
_RULES: tuple[tuple[Callable[[Path], str], Callable[[Path], str]], ...] = (
    (str, str),
    (lambda path: str(path.with_suffix("")), lambda path: str(path.with_suffix(""))),
    (lambda path: path.name, lambda path: path.name),
    (lambda path: path.stem, lambda path: path.stem),
    (lambda path: path.stem, lambda path: PREFIX + path.stem),
)


def images_in(folder: Path) -> list[Path]:
    """Images in a folder and below, in order; without what macOS keeps beside them ("._NAME").

    Raises:
      ValueError: if it is no folder, or there are none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    named = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith("._"))
    files = sorted(file for file in named if file.is_file())
    if not files:
        raise ValueError(f"{folder} has no images; wanted files that end in {', '.join(sorted(SUFFIXES))}")
    return files


def names(files: Iterable[Path], root: Path) -> dict[str, Path]:
    """Name -> file: the bare name, as published, or the path below `root` where two files share theirs."""
    files = list(files)
    counts = Counter(file.name for file in files)
    return {file.name if counts[file.name] == 1 else file.relative_to(root).as_posix(): file for file in files}


def pair(reference: Path, generated: Path) -> Pairing:
    """Pairs the images of two folders.

    Raises:
      ValueError: if one has none, or a reference could have two paintings.
    """
    references, paintings = images_in(reference), images_in(generated)
    indices = [_index(paintings, generated, of) for of, _ in _RULES]
    pairs, missing = {}, []
    for name, file in names(references, reference).items():
        found = _find(file.relative_to(reference), indices)
        if found is None:
            missing.append(name)
        else:
            pairs[name] = (file, found)
    used = Counter(painting for _, painting in pairs.values())
    for painting, count in used.items():
        if count > 1:
            sharing = ", ".join(name for name, (_, own) in pairs.items() if own == painting)
            raise ValueError(f"{painting} would be the painting of {sharing}; give references names of their own")
    return Pairing(pairs, tuple(missing), tuple(file for file in paintings if file not in used))


def _index(paintings: list[Path], root: Path, of: Callable[[Path], str]) -> dict[str, list[Path]]:
    index: dict[str, list[Path]] = defaultdict(list)
    for file in paintings:
        index[of(file.relative_to(root))].append(file)
    return index


def _find(reference: Path, indices: list[dict[str, list[Path]]]) -> Path | None:
    for index, (_, wanted) in zip(indices, _RULES, strict=True):
        found = index.get(wanted(reference), [])
        if len(found) > 1:
            raise ValueError(f"{reference} could be painted in {found[0]} and {found[1]}; keep one of them")
        if found:
            return found[0]
    return None

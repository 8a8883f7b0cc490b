"""A folder of images, and below; the caption of `a/b.jpg` is the text of `a/b.txt`."""

import os

from etils import epath

from uae_jax import paths
from uae_jax.data.images import SUFFIXES
from uae_jax.data.records import Record
from uae_jax.data.sources.base import SourceError, check_index, image_at, is_remote, nearest, read_text

FIELD = "caption"


class FolderSource:
    """Images in the order of their paths. What begins with a dot is passed over.

    Attributes:
      names: paths of the images, relative to the folder.
    """

    def __init__(self, path: str, captions: tuple[str, ...] = ()):
        """Lists the folder.

        Args:
          path: of the folder.
          captions: `("caption",)` or ().

        Raises:
          SourceError: if it is not there, there is no image in it, or a folder below cannot be read.
        """
        self.name = path
        for field in captions:
            nearest(field, [FIELD], "caption field", path)
        if not epath.Path(path).is_dir():
            raise SourceError(f"{path}: no such folder, wanted one of images")
        self.names = _list_remote(path) if is_remote(path) else _list_local(path)
        if not self.names:
            raise SourceError(f"{path}: no image in it, wanted files ending in {', '.join(SUFFIXES)}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Record:
        path = self._path(index)
        return Record(os.fspath(path), image_at(path), {FIELD: read_text(path.with_suffix(".txt"))})

    def id(self, index: int) -> str:
        return os.fspath(self._path(index))

    def _path(self, index: int) -> epath.Path:
        return epath.Path(self.name) / self.names[check_index(index, len(self), self.name)]


def _list_local(root: str) -> list[str]:
    """Relative paths of all images. Links to folders are followed, each folder is entered once."""
    found, entered = [], set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files if _is_image(name)]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise SourceError(f"{error.filename}: {error.strerror}; make the folder readable, or move it away") from None


def _list_remote(root: str) -> list[str]:
    found = []
    with paths.os_errors(root):
        for folder, folders, files in paths.walk(epath.Path(root)):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [(folder / name).relative_to(root).as_posix() for name in files if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")

"""Published checkpoint folders: finding them, listing their tensors, writing new ones."""

import collections
import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np

from uae_jax import paths
from uae_jax.weights import safetensors
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.safetensors import Tensor

_logger = logging.getLogger(__name__)
MODEL = "model"  # file stem that transformers uses
DIFFUSION_MODEL = "diffusion_pytorch_model"  # file stem that diffusers uses
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NATIVE = "native.json"  # manifest of the format of `uae_jax.weights.native`
UAE_NATIVE = "uae.json"  # the same of a whole UAE checkpoint, `uae_jax.weights.uae`
# File -> fields of which it has one, in every folder that this package, transformers, diffusers or PEFT write.
MARKERS = {
    NATIVE: ("architecture",),
    UAE_NATIVE: ("encoder_lora",),
    "llm_model/config.json": ("architectures",),  # a published UAE checkpoint
    "config.json": ("architectures", "model_type", "_class_name"),
    "model_index.json": ("_class_name",),
    "adapter_config.json": ("peft_type",),
}
TEXT_SUFFIXES = (".json", ".txt", ".jinja", ".model")
EMBEDDED = Path(__file__).parent.parent / "assets"  # models that come with the package, by name
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_INDEX = ".safetensors.index.json"
_DOWNLOADS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


def resolve(name_or_path: str | os.PathLike, *, subfolder: str = "", offline: bool = False) -> Path:
    """Finds a checkpoint folder: an embedded model, a local path, a bucket's, or a repository of the Hugging Face hub.

    "tiny" and "tiny/scorers/clip" are embedded, and win over a local folder of that name, which "./tiny" means.

    What lies in a bucket, "gs://...", is copied to this machine, once; see `paths.fetch`.

    A hub's name is OWNER/NAME; "runs/..." and "models/..." are folders. It is reached through its cache. Only
    safetensors, JSON and tokenizer files are fetched. Without a network (or with `HF_HUB_OFFLINE=1`) the cache alone
    serves.

    Args:
      name_or_path: a name as above (a `Path` is always a local one).
      subfolder: the only part of the repository that is fetched; it is not part of the result.
      offline: never reach out.

    Raises:
      WeightsError: if there is neither; says what was tried.
    """
    if paths.is_remote(name_or_path):
        return _fetched(name_or_path, offline)
    embedded = isinstance(name_or_path, str) and name_or_path.split("/")[0] in embedded_names()
    path = EMBEDDED / name_or_path if embedded else Path(name_or_path).expanduser()
    if path.exists():
        return path
    if embedded:
        raise WeightsError(f"{name_or_path}: not in the package; a local folder of that name is ./{name_or_path}")
    if not _is_hub_name(name_or_path):
        raise WeightsError(_nothing_at(name_or_path))
    import huggingface_hub

    patterns = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in _DOWNLOADS]
    try:
        found = huggingface_hub.snapshot_download(str(name_or_path), allow_patterns=patterns, local_files_only=offline)
    except Exception as error:  # the hub client raises many kinds; all mean that there is nothing to load
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{name_or_path}: no such folder, and not to be had from the Hugging Face hub ({reason}); "
            f"download it with `hf download {name_or_path}` or give a local path"
        ) from None
    return Path(found)


def _is_hub_name(name: str | os.PathLike) -> bool:
    """Whether a name is of the form OWNER/NAME, and not that of a folder where we and our guides put models."""
    folders = (".", "~", "runs/", "models/")
    return isinstance(name, str) and bool(_HUB_NAME.fullmatch(name)) and not name.startswith(folders)


def _nothing_at(name: str | os.PathLike) -> str:
    """What to do about a folder that is not there."""
    path = Path(name)
    wanted = "wanted a UAE checkpoint (llm_model, dit, SD3), or one model (config.json and .safetensors)"
    if path.parts[:1] == ("runs",) and path.name == "model":
        return f"{name}: no such folder, {wanted}; `uae train --workdir {path.parent}` leaves one there when it is done"
    if path.parts[:1] == ("models",):
        return f"{name}: no such folder, {wanted}; download one, `hf download OWNER/NAME --local-dir {name}`"
    return f"{name}: no such folder, {wanted}; correct the path, or name a repository of the Hugging Face hub"


def _fetched(path: str | os.PathLike, offline: bool) -> Path:
    if offline:
        raise WeightsError(f"{path}: in a bucket, which is not reached out to; give a local path")
    try:
        return paths.fetch(path)
    except OSError as error:
        raise WeightsError(f"{error}; wanted a folder with a model") from error


def embedded_names() -> tuple[str, ...]:
    """The models that come with the package."""
    return ("tiny",)


def read_json(path: Path) -> dict:
    """Reads a JSON object.

    Raises:
      WeightsError: if the file is missing, too long or holds no JSON object.
    """
    try:
        size = path.stat().st_size
        if size > safetensors.MAX_HEADER_BYTES:
            raise WeightsError(f"{path}: {size} bytes of JSON, wanted at most {safetensors.MAX_HEADER_BYTES}")
        return safetensors.parse_object(path, path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"{path}: missing, wanted a JSON file") from None
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}, wanted a JSON file") from None


def open_checkpoint(path: str | os.PathLike) -> dict[str, Tensor]:
    """Lists all tensors of a safetensors file, or of a folder with one file, numbered shards or an index.

    A folder may hold variants ("model.fp16.safetensors"); then the file or index with the plain name is read.

    Raises:
      WeightsError: on pickle files, a missing shard, a key that the index misplaces, or a broken file.
    """
    path = Path(path)
    if os.path.isfile(path):
        refuse_pickle(path)
        return safetensors.open_file(path)
    if not os.path.isdir(path):
        raise WeightsError(f"{path}: missing, wanted a safetensors file or a folder of them")
    for stem in (MODEL, DIFFUSION_MODEL):
        if os.path.isfile(path / f"{stem}.safetensors"):
            return safetensors.open_file(path / f"{stem}.safetensors")
        if os.path.isfile(path / f"{stem}{_INDEX}"):
            return _open_sharded(path / f"{stem}{_INDEX}")
    indexes = sorted(path.glob(f"*{_INDEX}"))
    if len(indexes) == 1:
        return _open_sharded(indexes[0])
    files = sorted(path.glob("*.safetensors"))
    if not files or indexes:
        _explain_nothing(path, indexes)
    if _numbered(files[0]):  # shards without an index, as the published `llm_lora` folder has them
        _check_numbering(files)
    elif len(files) > 1:
        raise WeightsError(f"{path}: {len(files)} .safetensors files and no index; name the one to read")
    tensors: dict[str, Tensor] = {}
    for file in files:
        for key, tensor in safetensors.open_file(file).items():
            if key in tensors:
                raise WeightsError(f"{file}: {key}: stands in {tensors[key].file} too, wanted once")
            tensors[key] = tensor
    return tensors


def _explain_nothing(folder: Path, indexes: list[Path]) -> NoReturn:
    if indexes:
        names = ", ".join(index.name for index in indexes)
        raise WeightsError(f"{folder}: {len(indexes)} indexes ({names}), wanted one; name the file to read")
    for other in sorted(folder.iterdir()):
        refuse_pickle(other)
    if (folder / NATIVE).exists():
        raise WeightsError(f"{folder}: holds the native format; load it with load_native, or `uae export` it first")
    raise WeightsError(f"{folder}: no .safetensors file in it")


def _open_sharded(index: Path) -> dict[str, Tensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise WeightsError(f"{index}: weight_map is missing or malformed, wanted key -> file name")
    wanted = collections.Counter(weight_map.values())
    for name in sorted(wanted):  # all names before any file: a hostile one is not to be touched
        if Path(name).name != name or name in ("", "..") or "\\" in name:
            raise WeightsError(f"{index}: shard {name!r} is outside the folder, wanted a plain file name")
        refuse_pickle(index.parent / name)
    tensors: dict[str, Tensor] = {}
    for name in sorted(wanted):
        # What a plain name links to is the owner's business: the Hugging Face cache links all files to its blobs.
        if not os.path.isfile(index.parent / name):
            raise WeightsError(f"{index.parent / name}: missing shard, the index wants {wanted[name]} tensors from it")
        for key, tensor in safetensors.open_file(index.parent / name).items():
            if weight_map.get(key) != name:
                there = f"the index has it in {weight_map[key]}" if key in weight_map else f"not in {index.name}"
                raise WeightsError(f"{tensor.file}: {key}: {there}")
            tensors[key] = tensor
    for key, name in weight_map.items():
        if key not in tensors:
            raise WeightsError(f"{index.parent / name}: {key}: not in this file, the index wants it there")
    return tensors


def _numbered(file: Path) -> re.Match[str] | None:
    return re.fullmatch(r"(.+)-([0-9]+)-of-([0-9]+)", file.stem)


def _check_numbering(files: list[Path]) -> None:
    stem, _, total = _numbered(files[0]).groups()
    names = {file.name for file in files}
    for number in range(1, int(total) + 1):
        wanted = f"{stem}-{number:0{len(total)}d}-of-{total}.safetensors"
        if wanted not in names:
            raise WeightsError(
                f"{files[0].with_name(wanted)}: missing shard, {files[0].name} says that there are {int(total)}"
            )
        names.remove(wanted)
    if names:
        raise WeightsError(f"{files[0].with_name(min(names))}: not one of the {int(total)} shards; remove one set")


def refuse_pickle(path: Path) -> None:
    """Raises `WeightsError` if a file's name says that it is a pickle; says how to convert it."""
    if path.suffix in PICKLES:
        raise WeightsError(
            f"{path}: a pickle file, which can run code when read; convert it once where PyTorch is installed: "
            f"from safetensors.torch import save_file; "
            f"save_file({{k: v.contiguous().clone() for k, v in "
            f"torch.load({path.name!r}, weights_only=True).items()}}, {path.stem + '.safetensors'!r})"
        )


def write_checkpoint(
    folder: Path,
    stem: str,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    read: Callable[[str], np.ndarray],
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes tensors as one safetensors file, or as shards with an index, in the naming of transformers and diffusers.

    Of several processes all take part in reading, and the first one writes.

    Args:
      folder: an existing folder.
      stem: `MODEL` or `DIFFUSION_MODEL`.
      tensors: key -> (shape, dtype).
      read: makes the value of a key when its turn comes; one is held at a time.
      max_shard_bytes: a new shard begins before this is exceeded.
    """
    shards: list[dict[str, tuple[tuple[int, ...], np.dtype]]] = [{}]
    filled, total = 0, 0
    for key, (shape, dtype) in tensors.items():
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if shards[-1] and filled + nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][key] = (shape, dtype)
        filled += nbytes
        total += nbytes
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    else:
        names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        index = {
            "metadata": {"total_size": total},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        if jax.process_index() == 0:
            write_json(folder / f"{stem}.safetensors.index.json", index)
    for name, shard in zip(names, shards, strict=True):
        # Wide dtypes first, as the reference implementation has them, so that each tensor is aligned to its own.
        aligned = dict(sorted(shard.items(), key=lambda item: -np.dtype(item[1][1]).itemsize))
        values = (read(key) for key in aligned)
        if jax.process_index() == 0:
            safetensors.write_file(folder / name, aligned, values)
        else:
            collections.deque(values, maxlen=0)


def text_files(folder: Path) -> list[Path]:
    """What lies beside weights: tokenizer, processor, scheduler; not configs and indexes, which are written anew."""
    return [
        file
        for file in sorted(folder.glob("*"))
        if file.suffix in TEXT_SUFFIXES and file.is_file()
        if file.name != "config.json" and not file.name.endswith(_INDEX)
    ]


def write_json(path: Path, value: object) -> None:
    """Writes JSON the way the published folders have it: two spaces, sorted keys, a final newline."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_files(root: Path, files: Mapping[str, bytes]) -> None:
    """Writes files by their paths below a folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


class NewFolder:
    """A folder that appears complete or not at all: `with NewFolder(path) as temporary: ...`.

    Writes go to a hidden sibling, renamed into place at the end; an error removes it, and leaves what was at `path`. In
    a run of several processes all make it, and what the first one wrote appears.

    What a killed process left beside `path` is put right on entry, or by `check`: half a folder is removed, and a model
    that was to be replaced is brought back where the new one had not come yet. Folders that a process holds are let be.

    Into a bucket what was written is copied at the end; see `paths.upload`.

    Raises:
      FileExistsError: on entry, if `path` exists and is not an empty folder; with `force`, which replaces it at the
        end and only then, if it is not a folder that this package, transformers, diffusers or PEFT wrote.
      OSError: on exit, naming `path`, if the disk is full.
    """

    def __init__(self, path: str | os.PathLike, *, force: bool = False):
        self.remote = paths.is_remote(path)
        path = paths.as_path(path)
        self.path = path if self.remote else path.resolve()  # a link to a folder on a larger disk stays one
        self.force = force
        self._temporary = self._beside("part")
        # Of a process that only helps, or for what is copied afterwards.
        elsewhere = jax.process_index() or self.remote
        self._elsewhere = tempfile.TemporaryDirectory() if elsewhere else None
        self._hold = contextlib.ExitStack()

    def __enter__(self) -> Path:
        self.check()
        if self._elsewhere is not None:
            return Path(self._elsewhere.name)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._made():
            self._temporary = self._beside("part")
        return self._temporary

    def _beside(self, kind: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.{kind}")

    def _made(self) -> bool:
        """Makes the temporary folder; False if another took it for one that is left over, before it was held."""
        self._temporary.mkdir()
        try:
            self._hold.enter_context(_held(self._temporary))
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError:  # a file system without locks, where nobody removes what is left over
            return True
        return self._temporary.exists()

    def check(self) -> None:
        """Raises what entering would; for whoever has long work to do before that."""
        if self._elsewhere is None:
            self._put_right()
        self._check()

    def _put_right(self) -> None:
        name = re.compile(rf"\.{re.escape(self.path.name)}\.[0-9a-f]{{8}}\.(part|old)")
        try:
            left = [folder for folder in self.path.parent.iterdir() if name.fullmatch(folder.name)]
        except OSError:  # not there, or not to be looked into
            return
        old = [folder for folder in left if folder.suffix == ".old"]
        if len(old) == 1 and not self.path.exists():
            with contextlib.suppress(OSError), _held(old[0]):
                old[0].rename(self.path)
                _logger.warning("%s: brought back from %s, as a killed process left it", self.path, old[0].name)
        for folder in left:
            if folder.suffix == ".part" or _is_checkpoint(self.path):
                with contextlib.suppress(OSError), _held(folder):
                    shutil.rmtree(folder, ignore_errors=True)

    def _check(self) -> None:
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self.force:
            raise FileExistsError(f"{self.path} exists; choose another folder, or force to replace it")
        if not _is_checkpoint(self.path):
            raise FileExistsError(
                f"{self.path} is not replaced, even by force: it holds no model ({' or '.join(MARKERS)}); "
                "choose another folder, or remove it yourself"
            )

    def __exit__(self, kind, error, trace) -> None:
        if self._elsewhere is not None:
            try:
                if kind is None and not jax.process_index():
                    self._check()
                    paths.upload(Path(self._elsewhere.name), self.path)
            finally:
                self._elsewhere.cleanup()
            return
        try:
            if kind is None:
                self._replace()
            for code in (errno.ENOSPC, errno.EDQUOT):  # which Orbax puts in a page of text, and NumPy without a name
                if os.strerror(code) in str(error):
                    raise OSError(code, os.strerror(code), str(self.path)) from error
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._hold.close()

    def _replace(self) -> None:
        self._check()  # again: much time has passed
        old = self._beside("old")
        exists = self.path.exists()
        with contextlib.ExitStack() as hold:
            if exists:
                with contextlib.suppress(OSError):
                    hold.enter_context(_held(self.path))  # under its other name, too
                self.path.rename(old)
            try:
                self._temporary.rename(self.path)
            except BaseException:
                if exists:
                    old.rename(self.path)
                raise
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Holds a folder, whatever it is called; the system lets go of it when this process ends, however it does.

    Raises:
      BlockingIOError: if it is held already: nobody waits, as a model is written into a folder that is held, in parts.
      OSError: where there is none, or locks are not to be had, as on some network disks.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a written model, and so may be replaced, with whatever else has been put into it."""
    if paths.is_remote(folder):  # or what is left of one
        return any((folder / name).exists() for name in (paths.UNFINISHED, *MARKERS))
    for name, fields in MARKERS.items():
        if os.path.isfile(folder / name):
            try:
                return any(field in read_json(folder / name) for field in fields)
            except WeightsError:
                return False
    return False

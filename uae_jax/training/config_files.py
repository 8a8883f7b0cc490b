"""Python files with a `get_config`, read as plain values."""

import contextlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict, FieldReference, config_dict

from uae_jax import plain
from uae_jax.plain import ConfigError

_TREE = "configs"  # the folder whose files may name each other from its top


def read(file: str) -> dict[str, Any]:
    """Calls a file's `get_config`.

    Args:
      file: "path.py", or "path.py:arg" to give it an argument.

    Returns:
      plain values: dicts, lists, numbers, strings, flags, None.

    Raises:
      ConfigError: if there is no such file, it cannot be run, or it returns something else.
    """
    path, arg = _split(file)
    with _importable(path.parent):
        module = _run(path)
        config = _get_config(module, path, arg)
    if not isinstance(config, ConfigDict | Mapping):
        raise ConfigError(f"{path}: get_config returned {type(config).__name__}, wanted a ConfigDict")
    try:
        return plain.to_plain(_resolved(config))
    except config_dict.RequiredValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def constants(file: str) -> dict[str, Any]:
    """What a file says of itself in capitals, `NAME = value`, and its docstring under "__doc__", as plain values.

    Raises:
      ConfigError: if there is no such file, or it cannot be run.
    """
    path, _ = _split(file)
    with _importable(path.parent):
        named = vars(_run(path))
        return {name: plain.to_plain(value) for name, value in named.items() if name.isupper() or name == "__doc__"}


def _split(file: str) -> tuple[Path, str | None]:
    path, arg = re.fullmatch(r"(.*?\.py|[^:]*)(?::(.*))?", file, re.DOTALL).groups()
    path = Path(path).expanduser()
    if path.is_dir():
        files = ", ".join(sorted(file.name for file in path.glob("*.py"))) or "none"
        raise ConfigError(f"{path}: a folder, wanted a .py file with get_config; in it: {files}")
    if path.is_file() and path.suffix != ".py":
        raise ConfigError(f"{path}: wanted a .py file with get_config")
    if not path.is_file():
        files = sorted(str(other) for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
        near = f"; the nearest there is {plain.nearest(str(path), files)}" if files else ""
        raise ConfigError(f"{path}: no such config file{near}")
    return path.resolve(), arg


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets a config import its neighbours, `import common`, and those of a tree, `from configs.tiny import common`.

    They are forgotten afterwards: other folders have files of the same names.
    """
    tree = next((part for part in (folder, *folder.parents) if part.name == _TREE), None)
    paths = [str(folder), *([str(tree.parent)] if tree else [])]
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == _TREE}
    known = set(sys.modules) - set(before)
    for name in before:
        del sys.modules[name]
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path[:0] = paths
    try:
        yield
    finally:
        for path in paths:
            sys.path.remove(path)
        sys.dont_write_bytecode = written
        for name in set(sys.modules) - known:
            origin = getattr(sys.modules[name], "__file__", None)
            beside = origin is not None and Path(origin).parent == folder
            if beside or name.split(".")[0] == _TREE:
                del sys.modules[name]
        sys.modules.update(before)


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:  # it is a program, and may fail in any way
        raise ConfigError(f"{path}: cannot be run: {type(error).__name__}: {error}") from error
    return module


def _get_config(module: ModuleType, path: Path, arg: str | None) -> Any:
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{path}: has no get_config(arg=None), which is to return a ConfigDict")
    takes_arg = bool(inspect.signature(get_config).parameters)
    if arg and not takes_arg:
        raise ConfigError(f"{path}: takes no argument, but got {arg!r}; leave out what follows the colon")
    try:
        return get_config(arg) if takes_arg else get_config()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{path}: get_config({arg!r}) failed: {type(error).__name__}: {error}") from error


def _resolved(value: Any) -> Any:
    """Takes `ConfigDict`s and references apart, also inside tuples."""
    if isinstance(value, FieldReference):
        return _resolved(value.get())
    if isinstance(value, ConfigDict | Mapping):
        return {name: _resolved(value[name]) for name in value}
    if isinstance(value, list | tuple):
        return [_resolved(part) for part in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy number
        return value.item()
    return value

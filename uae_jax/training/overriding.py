"""`--config.a.b=value`: one value of a config set from the command line, read as the type that the schema wants."""

import ast
import dataclasses
import re
import types
import typing
from collections.abc import Callable
from typing import Any

from uae_jax import plain
from uae_jax.plain import ConfigError

PREFIX = "--config."

Narrowed = Callable[[type, Any, str], dict[str, type]]


def apply(settings: dict[str, Any], override: str, kind: type, narrowed: Narrowed) -> None:
    """Sets one value in plain settings, in place.

    Args:
      settings: values for the fields of `kind`; what lies on the way and is not there is filled in from the defaults.
      override: "--config.a.b=value"; an item of a list is "a[0]" or "a.0".
      kind: the dataclass of `settings`.
      narrowed: (dataclass, its plain value, place) -> field -> dataclass, where a field's hint does not say which.

    Raises:
      ConfigError: if no such field or item is there; names the nearest. Whether the value fits is checked later.
    """
    key, equals, text = override.partition("=")
    if not key.startswith(PREFIX) or not equals:
        raise ConfigError(f"override {override!r}: wanted {PREFIX}key=value")
    parts = re.sub(r"\[(\d+)\]", r".\1", key.removeprefix(PREFIX)).split(".")
    holder, hint, where = settings, kind, "config"
    for number, part in enumerate(parts):
        hint, default, slot = _below(holder, plain.without_none(hint), part, where, narrowed)
        where = f"{where}[{part}]" if isinstance(holder, list) else f"{where}.{part}"
        if number == len(parts) - 1:
            holder[slot] = parse(text, hint)
            return
        if isinstance(holder, dict) and holder.get(slot) is None:
            holder[slot] = {} if default in (None, dataclasses.MISSING) else plain.to_plain(default)
        holder = holder[slot]
        if not isinstance(holder, dict | list):
            raise ConfigError(f"{where}: is {holder!r}, which has no {'.'.join(parts[number + 1 :])} to set")


def _below(holder: Any, hint: Any, part: str, where: str, narrowed: Narrowed) -> tuple[Any, Any, Any]:
    """Hint, default and key of one step down."""
    if isinstance(holder, list):
        if not part.isdecimal() or int(part) >= len(holder):
            raise ConfigError(f"{where}[{part}]: not there, wanted the number of one of {len(holder)} items, from 0")
        kinds = typing.get_args(hint) or (Any,)
        number = int(part)
        return kinds[number] if number < len(kinds) and kinds[-1] is not Ellipsis else kinds[0], None, number
    if dataclasses.is_dataclass(hint):
        narrow = narrowed(hint, holder, where) if part == "settings" else {}
        hints = {**plain.hints_of(hint), **narrow}
        if part not in hints:
            raise ConfigError(f"{where}.{part}: {plain.unknown(part, hint, _all_narrowed(hint, holder, narrowed))}")
        return hints[part], plain.default_of(hint, part), part
    kinds = typing.get_args(hint)
    return kinds[1] if len(kinds) == 2 else Any, None, part


def _all_narrowed(kind: type, value: Any, narrowed: Narrowed) -> dict[str, type]:
    """For a suggestion; a stage that is wrong itself is not what the message is to be about."""
    try:
        return narrowed(kind, value, "")
    except ConfigError:
        return {}


def parse(text: str, hint: Any) -> Any:
    """Reads a plain value as the type that is wanted; where it cannot be read so, as it stands.

    Strings stand as they are, without quotes; flags are true or false; lists are "1,2", "(1, 2)" or "[1, 2]", those of
    strings "a,b" too.
    """
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    kinds = [kind for kind in kinds if kind is not type(None)]
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if all(_is_text(kind) for kind in kinds):
        return text
    value = _literal(text)
    lists = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    if not lists or type(value) in kinds:
        return value
    item = typing.get_args(lists[0])[0]
    names = _is_text(item) and text[:1] not in tuple("([\"'")
    if isinstance(value, list | dict) and not names:
        return value
    return [parse(part.strip(), item) for part in text.split(",") if part.strip()]


def _is_text(kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return all(isinstance(choice, str) for choice in typing.get_args(kind))
    return kind is str


def _literal(text: str) -> Any:
    try:
        return plain.to_plain(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text

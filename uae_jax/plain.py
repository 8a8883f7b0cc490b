"""Dataclasses of settings from what JSON and configuration files hold, every misspelt name and wrong value refused.

Plain values are numbers, strings, flags, None, lists, and dicts with string keys.
"""

import collections.abc
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


class ConfigError(ValueError):
    """Settings cannot be used; the message names the place, what was got and what was wanted."""


def from_plain(kind: type, value: Any, where: str, *, narrowed: Mapping[str, type] = {}, base: Any = None) -> Any:
    """Builds a dataclass from a plain value.

    Args:
      kind: the dataclass; its fields may be numbers, strings, flags, tuples, dicts, other such dataclasses, or None.
      value: a plain value. Fields that it lacks keep their defaults.
      where: the place, for messages.
      narrowed: field -> dataclass, for fields of `kind` whose own hint says less.
      base: an instance to take lacking fields from, instead of the defaults of `kind`.

    Raises:
      ConfigError: on unknown fields, with the nearest known name, missing ones, and values of another type.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: is {value!r}, wanted an object")
    hints = {**hints_of(kind), **narrowed}
    for name in value:
        if name not in hints:
            raise ConfigError(f"{where}.{name}: {unknown(name, kind, narrowed)}")
    built = {}
    for name, part in value.items():
        default = default_of(kind, name) if base is None else getattr(base, name)
        built[name] = _build(hints[name], part, f"{where}.{name}", default)
    missing = [name for name in hints if name not in built and default_of(kind, name) is dataclasses.MISSING]
    if missing and base is None:
        raise ConfigError(f"{where}: lacks {', '.join(missing)}")
    try:
        return kind(**built) if base is None else dataclasses.replace(base, **built)
    except ValueError as error:  # values that do not go together
        raise ConfigError(f"{where}: {error}") from None


def to_plain(value: Any) -> Any:
    """Makes JSON values of dataclasses, tuples and mappings, all the way down; other values stay what they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(part) for part in value]
    return value


def hints_of(kind: type) -> dict[str, Any]:
    """Field -> type hint of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def default_of(kind: type, name: str) -> Any:
    """A field's default, or `dataclasses.MISSING`."""
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def without_none(hint: Any) -> Any:
    """`X` of `X | None`; other hints as they are."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        others = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return others[0] if len(others) == 1 else hint
    return hint


def unknown(name: str, kind: type, narrowed: Mapping[str, type] = {}) -> str:
    """Says that a dataclass has no such field, and which one may have been meant: its own, or one further down."""
    hints = {**hints_of(kind), **narrowed}
    near = nearest(name, hints)
    below = [path for path in _paths(hints, "") if path.rpartition(".")[2] == name]
    if below and similarity(name, near) < 0.8:
        near = below[0]
    return f"unknown; the nearest field of {kind.__name__} is {near!r}"


def _paths(hints: Mapping[str, Any], prefix: str) -> Iterable[str]:
    """Dotted paths of the fields below, nearer levels first."""
    parts = [(prefix + name + ".", without_none(hint)) for name, hint in hints.items()]
    parts = [(path, hint) for path, hint in parts if dataclasses.is_dataclass(hint)]
    for path, hint in parts:
        yield from (path + name for name in hints_of(hint))
    for path, hint in parts:
        yield from _paths(hints_of(hint), path)


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that was probably meant."""
    return max(names, key=lambda other: similarity(name, other))


def similarity(one: str, two: str) -> float:
    """0 to 1, which is equality: the share of letters that stand in both in the same order, letter case aside."""
    return difflib.SequenceMatcher(None, one.lower(), two.lower(), autojunk=False).ratio()


def _build(hint: Any, value: Any, where: str, default: Any = None) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, where, base=default if type(default) is hint else None)
    if origin in (typing.Union, types.UnionType):
        return _from_union(args, value, where, default)
    if origin is tuple:
        if not isinstance(value, list) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise ConfigError(f"{where}: is {value!r}, wanted a list like {hint}")
        parts = [args[0]] * len(value) if args[-1] is Ellipsis else args
        pairs = enumerate(zip(parts, value, strict=True))
        return tuple(_build(part, item, f"{where}[{i}]") for i, (part, item) in pairs)
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: is {value!r}, wanted an object like {hint}")
        return {name: _build(args[1], part, f"{where}.{name}") for name, part in value.items()}
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where}: is {value!r}, wanted one of {', '.join(map(repr, args))}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: is {value!r}, wanted {_NAMES.get(hint, hint)}")
    return value


def _from_union(kinds: tuple[Any, ...], value: Any, where: str, default: Any) -> Any:
    if value is None and type(None) in kinds:
        return None
    *others, last = [kind for kind in kinds if kind is not type(None)]
    for kind in others:
        try:
            return _build(kind, value, where, default)
        except ConfigError:
            continue
    return _build(last, value, where, default)

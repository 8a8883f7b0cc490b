"""The way from a file in `configs/` and `--config.key=value` overrides to experiments that can be run.

A file defines `get_config(arg=None)`, which returns a `ConfigDict` with the fields of `training.config.Experiment`; or,
for several stages one after the other, with `stages=("a", "b")` and such a `ConfigDict` under each of these names.
Whatever a file or an override names is checked against the dataclasses, and what they leave out has its default.
"""

import dataclasses
import hashlib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from uae_jax import plain
from uae_jax.plain import ConfigError
from uae_jax.stages import registry
from uae_jax.training import checks, config_files, overriding
from uae_jax.training.config import Experiment

_STAGES = "stages"
_MOST = 20  # problems that one message lists


def load_config(file: str, overrides: Sequence[str] = ()) -> list[tuple[str, Experiment]]:
    """Reads a config; nothing is allocated and no model is loaded.

    Args:
      file: "path.py" or "path.py:arg"; the part after the colon is given to `get_config`.
      overrides: "--config.a.b=value" each; any field may be set, whether or not the file mentions it, items of lists
        as in "--config.data.sources[0].weight=2".

    Returns:
      name and experiment of each stage, in the order in which they run; a single one is named by its stage.

    Raises:
      ConfigError: if the file cannot be read, a key is misspelt (with the nearest valid one), or a value will not do.
    """
    settings = config_files.read(file)
    kind = _schema(settings, file)
    for override in sorted(overrides, key=_stages_first):
        overriding.apply(settings, override, kind, _narrowed)
    if _STAGES not in settings:
        experiment = _experiment(settings, "config")
        return [(experiment.stage, experiment)]
    experiments = {
        name: _experiment(value, f"config.{name}") for name, value in settings.items() if name != _STAGES
    }  # all of them: a misspelt key is to be noticed even where the stage does not run today
    return [(name, experiments[name]) for name in _order(settings, file)]


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
    """Reads the argument of a `get_config`: `parse_arg("steps=100,fast", steps=10, fast=False)`.

    Args:
      arg: options with commas between them, each "name=value", or "name" alone for a flag that becomes True.
      defaults: every option and its default, whose type is the type of the value; None takes anything.

    Returns:
      an attribute for each option.

    Raises:
      ConfigError: on an unknown option, with the nearest known one, an option given twice, or a value of another type.
    """
    options = types.SimpleNamespace(**defaults)
    given = set()
    for part in filter(None, (arg or "").split(",")):
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if name not in defaults:
            known = f"; the nearest option is {plain.nearest(name, defaults)!r}" if defaults else "; it takes none"
            raise ConfigError(f"config argument {name!r}: unknown{known}")
        if name in given:
            raise ConfigError(f"config argument {name!r}: given twice")
        given.add(name)
        setattr(options, name, _option(name, text if equals else None, defaults[name]))
    return options


def _option(name: str, text: str | None, default: Any) -> Any:
    kind = type(default)
    if text is None:
        if kind is not bool:
            raise ConfigError(f"config argument {name!r}: has no value, wanted {name}=...")
        return True
    value = overriding.parse(text, Any if default is None else kind)
    if kind is float and type(value) is int:
        return float(value)
    if default is not None and type(value) is not kind:
        raise ConfigError(f"config argument {name!r}: is {text!r}, wanted a value like {default!r}")
    return value


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The whole experiment, defaults included, as JSON keeps it."""
    return plain.to_plain(experiment)


def from_json(value: Mapping[str, Any], where: str = "config") -> Experiment:
    """Reads back what `to_json` gave.

    Raises:
      ConfigError: if it is not that of today's schema.
    """
    return _experiment(dict(value), where)


def digest(experiment: Experiment) -> str:
    """SHA-256 in hexadecimal, equal for equal experiments on every machine."""
    return hashlib.sha256(json.dumps(to_json(experiment), sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any) -> list[str]:
    """What changed between two experiments, or what `to_json` made of them: "optimiser.clip: 1.0 -> 0.5" each.

    The path before the first colon has dots between its parts and items of lists in brackets.
    """
    before, after = (dict(_leaves(plain.to_plain(each), "")) for each in (old, new))
    paths = [*before, *(path for path in after if path not in before)]
    shown = {path: (_shown(before, path), _shown(after, path)) for path in paths}
    return [f"{path}: {was} -> {now}" for path, (was, now) in shown.items() if was != now]


def _shown(leaves: Mapping[str, Any], path: str) -> str:
    return json.dumps(leaves[path]) if path in leaves else "(none)"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{path}[{number}]")
    else:
        yield path, value


def _schema(settings: Mapping[str, Any], file: str) -> type:
    """The dataclass of all that may stand in a config: an experiment's fields, or one experiment per name."""
    if _STAGES not in settings:
        _refuse_misspelt(settings, "config", _STAGES)
        return Experiment
    names = [name for name in settings if name != _STAGES]
    wrong = [name for name in names if not isinstance(settings[name], dict)]
    if wrong:
        near = plain.nearest(wrong[0], [_STAGES, *_names(settings, file)])
        raise ConfigError(
            f"config.{wrong[0]}: unknown; a config of several stages holds `stages` and one experiment for each name "
            f"in it; the nearest is {near!r}"
        )
    fields = [(name, Experiment, dataclasses.field(default=None)) for name in names]
    return dataclasses.make_dataclass("Stages", [(_STAGES, tuple[str, ...]), *fields])


def _refuse_misspelt(value: Mapping[str, Any], where: str, *others: str) -> None:
    """Names the field that was probably meant, before anything is said about a field that is not there."""
    fields = plain.hints_of(Experiment)
    names = [*fields, *([] if "stage" in value else others)]
    misspelt = {name: plain.nearest(name, names) for name in value if name not in fields}
    if misspelt:
        name, near = max(misspelt.items(), key=lambda pair: plain.similarity(*pair))
        if near in others:
            raise ConfigError(f"{where}.{name}: unknown; the nearest valid name is {near!r}")
        raise ConfigError(f"{where}.{name}: {plain.unknown(name, Experiment)}")


def _names(settings: Mapping[str, Any], file: str) -> list[str]:
    names = settings[_STAGES]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{file}: stages is {names!r}, wanted the names of the experiments in their order")
    return names


def _order(settings: Mapping[str, Any], file: str) -> list[str]:
    """Names of the stages to run, each of which is there, once."""
    names, there = _names(settings, file), [name for name in settings if name != _STAGES]
    for name in names:
        if name not in there:
            near = f"; the nearest there is {plain.nearest(name, there)!r}" if there else ""
            raise ConfigError(f"{file}: stages names {name!r}, which the config does not hold{near}")
    if len(set(names)) < len(names):
        raise ConfigError(f"{file}: stages names one of {', '.join(names)} twice; give the second a name of its own")
    return names


def _stages_first(override: str) -> bool:
    """Sorts overrides that name a stage before others: they say which settings there are."""
    key = override.partition("=")[0]
    return not key.endswith((".stage", "." + _STAGES))


def _narrowed(kind: type, value: Any, where: str) -> dict[str, type]:
    """The dataclass of an experiment's settings, which depends on its stage."""
    if kind is not Experiment:
        return {}
    if not isinstance(stage := value.get("stage"), str):
        raise ConfigError(f"{where}.stage: is {stage!r}, wanted one of {', '.join(registry.names())}")
    try:
        return {"settings": registry.find(stage).Settings}
    except ValueError as error:
        raise ConfigError(f"{where}.stage: {error}") from None


def _experiment(value: Any, where: str) -> Experiment:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: is {value!r}, wanted the fields of an experiment")
    _refuse_misspelt(value, where)
    narrowed = _narrowed(Experiment, value, where)
    experiment = plain.from_plain(Experiment, {"settings": {}, **value}, where, narrowed=narrowed)
    problems = checks.problems(experiment)
    if problems:
        more = [f"and {len(problems) - _MOST} more"] if len(problems) > _MOST else []
        raise ConfigError("; ".join([*(f"{where}.{problem}" for problem in problems[:_MOST]), *more]))
    try:  # the stage's own checks; where a model comes from an earlier stage, it can only check later
        if not str(getattr(experiment.settings, "model", "")).startswith("previous"):
            registry.find(experiment.stage)(experiment.settings, experiment.seed)
    except ValueError as error:
        raise ConfigError(f"{where}.settings: {error}") from None
    return experiment

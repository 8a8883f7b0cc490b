"""What values of an experiment must be, beyond their types; all of it is checked before anything is allocated."""

from collections.abc import Iterator
from typing import Any

from uae_jax.data.config import DataConfig, ScenesConfig, SourceConfig
from uae_jax.training.config import Experiment

_AT_LEAST = {
    "steps": 0,
    "batch_size": 1,
    "accumulate": 1,
    "seed": 0,
    "log_every": 1,
    "evaluate_every": 0,
    "evaluation_batches": 1,
    "checkpoint_every": 1,
    "keep": 1,
    "keep_every": 0,
    "max_nonfinite": 1,
    "profile_steps": 0,
    "optimiser.learning_rate": 0,
    "optimiser.warmup": 0,
    "optimiser.weight_decay": 0,
    "optimiser.clip": 0,
    "ema.every": 1,
}
_FRACTIONS = ("optimiser.final_fraction", "optimiser.b1", "optimiser.b2", "ema.decay")
_MAY_BE_ONE = ("optimiser.final_fraction",)


def problems(experiment: Experiment) -> list[str]:
    """Says what is wrong, one line each: "steps: is -1, wanted at least 0"."""
    return list(_run(experiment))


def _run(experiment: Experiment) -> Iterator[str]:
    for path, least in _AT_LEAST.items():
        yield from _at_least(path, _value(experiment, path), least)
    for path in _FRACTIONS:
        value = _value(experiment, path)
        if not 0 <= value <= 1 or (value == 1 and path not in _MAY_BE_ONE):
            yield f"{path}: is {value!r}, wanted 0 to 1" + ("" if path in _MAY_BE_ONE else ", less than 1")
    if not experiment.optimiser.eps > 0:
        yield f"optimiser.eps: is {experiment.optimiser.eps!r}, wanted more than 0"
    if experiment.seed >= 2**32:
        yield f"seed: is {experiment.seed}, wanted less than 2**32"
    if experiment.accumulate >= 1 and experiment.batch_size % experiment.accumulate:
        yield f"batch_size: is {experiment.batch_size}, wanted a multiple of accumulate, {experiment.accumulate}"
    if experiment.evaluate_every > 0 and experiment.validation is None:
        yield f"evaluate_every: is {experiment.evaluate_every}, but there is no validation to evaluate on"
    yield from _mesh(experiment)
    yield from _data("data", experiment.data)
    if experiment.validation is not None:
        yield from _data("validation", experiment.validation)


def _mesh(experiment: Experiment) -> Iterator[str]:
    sizes = vars(experiment.mesh)
    for name, size in sizes.items():
        if size < 1 and size != -1:
            yield f"mesh.{name}: is {size}, wanted at least 1, or -1 for all devices that are left"
    if sum(size == -1 for size in sizes.values()) > 1:
        yield f"mesh: {', '.join(name for name, size in sizes.items() if size == -1)} are -1, which only one may be"


def _data(where: str, data: DataConfig) -> Iterator[str]:
    if not data.sources:
        yield f"{where}.sources: is empty, wanted at least one"
    if not data.aspects or not all(aspect > 0 for aspect in data.aspects):
        yield f"{where}.aspects: is {data.aspects!r}, wanted one or more, each above 0"
    for name, least in {"resolution": 0, "multiple_of": 1, "workers": 0, "buffer": 1}.items():
        yield from _at_least(f"{where}.{name}", getattr(data, name), least)
    for name in ("flip", "max_bad_fraction"):
        if not 0 <= getattr(data, name) <= 1:
            yield f"{where}.{name}: is {getattr(data, name)!r}, wanted 0 to 1"
    for number, source in enumerate(data.sources):
        yield from _source(f"{where}.sources[{number}]", source)


def _source(where: str, source: SourceConfig) -> Iterator[str]:
    if not source.weight > 0:
        yield f"{where}.weight: is {source.weight!r}, wanted more than 0"
    if not source.path and source.kind != "scenes":
        yield f'{where}.path: is empty, wanted a folder, file or dataset (only kind "scenes" has none)'
    if source.kind == "scenes" and source.path not in ("", "scenes"):
        yield (
            f'{where}.path: is {source.path!r}, but {where}.kind is "scenes", which reads no files; '
            f"set {where}.kind=auto, too, or give a file of configs/ your own data, FILE:data={source.path}"
        )
    if source.caption_weights and len(source.caption_weights) != len(source.captions):
        yield (
            f"{where}.caption_weights: holds {len(source.caption_weights)}, "
            f"wanted one for each of {len(source.captions)} captions"
        )
    if not all(weight > 0 for weight in source.caption_weights):
        yield f"{where}.caption_weights: is {source.caption_weights!r}, wanted numbers above 0"
    if source.kind == "scenes":
        yield from _scenes(f"{where}.scenes", source.scenes)


def _scenes(where: str, scenes: ScenesConfig) -> Iterator[str]:
    for name, least in {"count": 1, "seed": 0, "size": 8, "variants": 1}.items():
        yield from _at_least(f"{where}.{name}", getattr(scenes, name), least)
    for name, wanted in {"objects": 6, "object_sizes": 3}.items():
        weights = getattr(scenes, name)
        if len(weights) != wanted or min(weights) < 0 or not any(weights):
            yield f"{where}.{name}: is {weights!r}, wanted {wanted} frequencies, none below 0 and not all 0"


def _value(experiment: Experiment, path: str) -> Any:
    value = experiment
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _at_least(path: str, value: Any, least: float) -> Iterator[str]:
    if not value >= least:
        yield f"{path}: is {value!r}, wanted at least {least}"

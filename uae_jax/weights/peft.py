"""LoRA adapters as PEFT stores them: `adapter_config.json` beside `adapter_model.safetensors`.

Letters: D width in, F width out (all output axes together), R rank.

PEFT keeps A [R, D] and B [F, R] for each module of the PyTorch model; we keep a [D, R] and b [R, *features], stacked
over equal layers. An architecture's table says which module is which kernel: its layout, which takes a weight [F, D] to
a kernel [D, *features], takes B to b alike, since it rearranges output features and leaves the other axis alone.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from uae_jax.models import lora
from uae_jax.models.lora import LoRAConfig
from uae_jax.parallel import global_arrays, sharding
from uae_jax.weights import checkpoint, safetensors, shapes_only, transfer
from uae_jax.weights.architecture import Architecture
from uae_jax.weights.errors import WeightsError, gathered
from uae_jax.weights.safetensors import Tensor
from uae_jax.weights.table import Entry

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"  # what a diffusers pipeline writes instead of a folder
_DIFFUSERS_COMPONENT = "transformer."
_DIFFUSERS_METADATA = "lora_adapter_metadata"

_PREFIX = re.compile(r"(model\.)?base_model\.model\.")
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")

# Fields that change nothing in what the stored tensors compute: provenance, training, and where adapters were put,
# which the tensors say themselves. Every other field that is set and not known here is refused.
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "qalora_group_size", "eva_config", "runtime_config"),
}
_HANDLED = {"peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights"}
_HARMLESS_INIT = (None, True, False, "gaussian", "eva", "orthogonal")  # the others change the base weights too


def load_adapter(
    name_or_path: str | os.PathLike,
    architecture: Architecture,
    config: Any,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules | None = None,
) -> tuple[LoRAConfig, Any]:
    """Loads a PEFT folder, or a LoRA file of a diffusers pipeline.

    Args:
      name_or_path: local folder, local file, or Hugging Face repository name.
      architecture: of the base model.
      config: the base model's sizes.
      dtype: of the adapter; None keeps the file's.
      mesh: places the adapter's axes like those of the kernels it adapts; None puts it on the default device.
      rules: logical axis -> mesh axes; defaults to `sharding.DEFAULT_RULES`.

    Returns:
      The config, whose targets name exactly the adapted layers, and the adapter tree of `uae_jax.models.lora`. In a
      stack of which only some layers are adapted, the others are zero in both factors: they add nothing, and their
      gradients are zero too, so training leaves them out as PEFT does.

    Raises:
      WeightsError: on an option that is not implemented, or listing every key that fits no linear layer.
    """
    path = checkpoint.resolve(name_or_path)
    if (path / CONFIG).is_file():
        rank, alpha = read_config(path / CONFIG)
        file = path / f"{WEIGHTS}.safetensors"
        if not file.is_file():
            checkpoint.refuse_pickle(next(path.glob(f"{WEIGHTS}.bin"), file))
        tensors = checkpoint.open_checkpoint(file)
    else:
        file = path / DIFFUSERS_WEIGHTS if path.is_dir() else path
        if not file.is_file():
            raise WeightsError(f"{path}: no adapter in it, wanted {CONFIG} or {DIFFUSERS_WEIGHTS}")
        found = checkpoint.open_checkpoint(file)
        tensors = {key.removeprefix(_DIFFUSERS_COMPONENT): tensor for key, tensor in found.items()}
        rank, alpha = _read_metadata(file)
    return adapter_from_tensors(
        architecture, config, tensors, source=str(file), rank=rank, alpha=alpha, dtype=dtype, mesh=mesh, rules=rules
    )


def read_config(path: Path) -> tuple[int, float]:
    """Reads rank and alpha from an `adapter_config.json`.

    Raises:
      WeightsError: on options that would change the result and are not implemented, by name.
    """
    return _rank_and_alpha(checkpoint.read_json(path), path)


def _rank_and_alpha(config_json: dict, source: Path) -> tuple[int, float]:
    problems = []
    if config_json.get("peft_type") != "LORA":
        problems.append(f"peft_type is {config_json.get('peft_type')!r}, wanted 'LORA'")
    if config_json.get("bias", "none") != "none":
        problems.append(f"bias is {config_json['bias']!r}, wanted 'none'")
    if config_json.get("init_lora_weights") not in _HARMLESS_INIT:
        init = config_json["init_lora_weights"]
        problems.append(f"init_lora_weights is {init!r}, which changes the base weights; wanted true or 'gaussian'")
    for key in sorted(config_json.keys() - _HANDLED - _WITHOUT_EFFECT):
        if config_json[key]:
            problems.append(f"{key} is {config_json[key]!r}, which is not implemented; wanted it unset")
    rank, alpha = config_json.get("r"), config_json.get("lora_alpha", config_json.get("r"))
    if type(rank) is not int or rank < 1:
        problems.append(f"r is {rank!r}, wanted a positive integer")
    elif type(alpha) not in (int, float) or not math.isfinite(alpha):
        problems.append(f"lora_alpha is {alpha!r}, wanted a number")
    if problems:
        raise gathered(str(source), problems)
    # PEFT scales by alpha / r, and by alpha / sqrt(r) under use_rslora; `LoRAConfig` knows the former only.
    return rank, float(alpha) * (math.sqrt(rank) if config_json.get("use_rslora") else 1.0)


def _read_metadata(file: Path) -> tuple[int | None, float | None]:
    """Rank and alpha of a diffusers file; it may say nothing, and then alpha is the rank."""
    text = safetensors.read_metadata(file).get(_DIFFUSERS_METADATA)
    if text is None:
        return None, None
    fields = safetensors.parse_object(file, text.encode(), _DIFFUSERS_METADATA)
    fields = {key.removeprefix(_DIFFUSERS_COMPONENT): value for key, value in fields.items()}
    return _rank_and_alpha({"peft_type": "LORA", **fields}, file)


def split_wrapped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parts the state dict of a whole PEFT-wrapped model into what the adapter and what the model own.

    Returns:
      The adapter as "<module>.lora_A.weight" and "<module>.lora_B.weight", and all else under the keys that it had
      before it was wrapped.

    Raises:
      WeightsError: if two keys become one, as they do where there is more than one adapter.
    """
    adapter: dict[str, Tensor] = {}
    base: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        plain = key[match.end() :] if (match := _PREFIX.match(key)) else key
        if found := _KEY.fullmatch(plain):
            part, name = adapter, f"{found['module']}.lora_{found['part']}.weight"
        else:
            part, name = base, re.sub(r"\.base_layer\.(?=[^.]+$)", ".", plain)
        if name in part:
            raise WeightsError(f"{tensor.file}: {key}: also there as {part[name].key}, wanted one adapter")
        part[name] = tensor
    return adapter, base


def rank_of(tensors: Mapping[str, Tensor]) -> int:
    """The rank of an adapter, as of `split_wrapped`."""
    return next(tensor.shape[0] for key, tensor in tensors.items() if key.endswith(".lora_A.weight"))


def adapter_from_tensors(
    architecture: Architecture,
    config: Any,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    rank: int | None = None,
    alpha: float | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules | None = None,
) -> tuple[LoRAConfig, Any]:
    """Builds an adapter from tensors whose keys name modules, as `load_adapter`, which see.

    Args:
      tensors: nothing but an adapter's; `split_wrapped` takes one out of a whole model.
      source: the file, for messages.
      rank: R; None takes the tensors'.
      alpha: None takes the rank.
    """
    pairs = _pair(tensors, source)
    rank = next(iter(pairs.values()))[0].shape[0] if rank is None else rank
    abstract = architecture.abstract(config)
    places = _places(architecture, config, abstract)
    filled, problems = _fit(architecture, config, pairs, places, rank)
    if problems:  # where PEFT wrapped the inner `model` of a model, the prefix of its keys has swallowed that name
        inner = {f"model.{module}": pair for module, pair in pairs.items()}
        filled, others = _fit(architecture, config, inner, places, rank)
        if others:
            raise gathered(source, problems)
    flat = _build(filled, rank, dtype)
    adapter = traverse_util.unflatten_dict(flat, sep="/")
    if mesh is None:
        placed = dict.fromkeys(flat)
    else:
        axes = lora.logical_axes(adapter, architecture.logical_axes.tree(abstract))
        placed = traverse_util.flatten_dict(sharding.shardings(adapter, axes, mesh, rules), sep="/")
    flat = {path: transfer.put(leaf, placed[path]) for path, leaf in flat.items()}
    targets = tuple(sorted({re.escape(path.rsplit("/", 1)[0]) for path in flat}))
    alpha = float(rank if alpha is None else alpha)
    return LoRAConfig(rank=rank, alpha=alpha, targets=targets), traverse_util.unflatten_dict(flat, sep="/")


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the adapter of one published weight goes: a kernel, or one layer of a stack of them."""

    entry: Entry
    layer: int | None
    shape: tuple[int, ...]  # of the published weight

    @property
    def path(self) -> str:
        return self.entry.path.removesuffix("/kernel")


def _places(architecture: Architecture, config: Any, abstract: Any) -> dict[str, _Place]:
    """Published key -> place, of every kernel."""
    table = [entry for entry in architecture.table(config) if entry.path.endswith("/kernel")]
    shapes = transfer.published_shapes(table, abstract)
    return {
        key: _Place(entry, None if entry.layers is None else i, shapes[key][0])
        for entry in table
        for i, key in enumerate(entry.keys)
    }


def _pair(tensors: Mapping[str, Tensor], source: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> (A, B)."""
    adapter, rest = split_wrapped(tensors)
    problems = [f"unexpected: {tensor.key} {list(tensor.shape)}" for tensor in rest.values()]
    pairs = {}
    for key, tensor in adapter.items():
        module, part = _KEY.fullmatch(key)["module"], _KEY.fullmatch(key)["part"]
        other = f"{module}.lora_{'B' if part == 'A' else 'A'}.weight"
        if other not in adapter:
            problems.append(f"missing: {other}, needed beside {tensor.key}")
        elif part == "A":
            pairs[module] = (tensor, adapter[other])
    if not adapter:
        problems.append("no lora_A or lora_B tensor in it")
    if problems:
        raise gathered(source, problems)
    return pairs


def _fit(
    architecture: Architecture,
    config: Any,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    places: Mapping[str, _Place],
    rank: int,
) -> tuple[list[tuple[_Place, Tensor, Tensor]], list[str]]:
    """Finds each module's place; returns those found and a line for each one that does not fit."""
    # B has the rows of the weight, so `canonical` can treat it as one, and `file` carries the module's name through.
    stand_ins = {f"{module}.weight": dataclasses.replace(b, file=module) for module, (_, b) in pairs.items()}
    try:
        renamed = architecture.canonical(stand_ins, config)
    except WeightsError as error:
        return [], [str(error)]
    filled, problems = [], []
    lost = pairs.keys() - {b.file for b in renamed.values()}
    problems += [f"unexpected: {pairs[module][0].key}: {module} has no linear layer of its own" for module in lost]
    for key, b in renamed.items():
        a, place = pairs[b.file][0], places.get(key)
        if place is None:
            problems.append(f"unexpected: {a.key}: {b.file} is no linear layer of {architecture.name}")
        elif len(place.shape) != 2:
            problems.append(f"unexpected: {a.key}: {b.file} is a convolution, which takes no adapter here")
        elif a.shape != (rank, place.shape[1]) or b.shape != (place.shape[0], rank):
            wanted = f"[{rank}, {place.shape[1]}] and [{place.shape[0]}, {rank}]"
            problems.append(f"shape: {a.key} and {b.key}: got {list(a.shape)} and {list(b.shape)}, wanted {wanted}")
        else:
            filled.append((place, a, b))
    return filled, sorted(problems)


def _build(filled: list[tuple[_Place, Tensor, Tensor]], rank: int, dtype: Any) -> dict[str, np.ndarray]:
    """Native path -> leaf, on the host."""
    target = transfer.target_dtype([tensor.dtype for _, *pair in filled for tensor in pair], dtype)
    flat: dict[str, np.ndarray] = {}
    for place, *pair in filled:
        if shapes_only.active():
            a, b = (np.broadcast_to(np.zeros((), tensor.dtype), tensor.shape) for tensor in pair)
        else:
            a, b = (tensor.read() for tensor in pair)
        native = {"a": a.T, "b": place.entry.layout.to_native(b)}
        for name, value in native.items():
            path = f"{place.path}/{name}"
            if place.layer is None:
                flat[path] = value.astype(target)
                continue
            if path not in flat:
                flat[path] = np.zeros((len(place.entry.layers), *value.shape), target)
            flat[path][place.layer] = value
    return flat


def save_adapter(
    folder: str | os.PathLike,
    adapter: Any,
    lora_config: LoRAConfig,
    architecture: Architecture,
    config: Any,
    *,
    base_model: str | None = None,
    force: bool = False,
) -> None:
    """Writes a folder that PEFT loads onto the PyTorch model, with no key missing and none unexpected.

    Layers of a stack that are zero in both factors are not adapted, and left out.

    Args:
      folder: the new folder.
      adapter: tree of `uae_jax.models.lora`, in whose dtypes it is written.
      lora_config: its rank and alpha.
      architecture: of the base model.
      config: the base model's sizes.
      base_model: name or path of the base weights, for whoever loads the adapter.
      force: replace an adapter or model at `folder`.

    Raises:
      WeightsError: if the adapter has a leaf that the architecture cannot publish.
      FileExistsError: see `checkpoint.NewFolder`.
    """
    factors = published_factors(adapter, architecture, config)
    names = {architecture.module_name(key.removesuffix(".weight")): pair for key, pair in factors.items()}
    keys = [key for entry in architecture.table(config) for key in entry.keys]
    others = {architecture.module_name(key.rsplit(".", 1)[0]) for key in keys}
    arrays = {}
    for module in sorted(names):
        arrays |= {f"base_model.model.{module}.lora_{part}.weight": names[module][part] for part in "AB"}
    alpha = lora_config.alpha
    adapter_json = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": lora_config.rank,
        "target_modules": _targets(set(names), others - set(names)),
        "task_type": None,
    }
    with checkpoint.NewFolder(folder, force=force) as temporary:
        checkpoint.write_json(temporary / CONFIG, adapter_json)
        shapes = {key: (array.shape, array.dtype) for key, array in arrays.items()}
        checkpoint.write_checkpoint(temporary, WEIGHTS, shapes, arrays.__getitem__, max_shard_bytes=2**63)


def adaptable_layers(architecture: Architecture, config: Any) -> list[str]:
    """Module paths of the layers that PEFT can store an adapter of, sorted: linear ones, not convolutions."""
    places = _places(architecture, config, architecture.abstract(config)).values()
    return sorted({place.path for place in places if len(place.shape) == 2})


def published_factors(adapter: Any, architecture: Architecture, config: Any) -> dict[str, dict[str, np.ndarray]]:
    """Lays an adapter tree out as PEFT has it.

    Returns:
      Published key of each adapted weight -> {"A": [R, D], "B": [F, R]}.

    Raises:
      WeightsError: if the adapter has a leaf that the architecture cannot publish.
    """
    places = _places(architecture, config, architecture.abstract(config))
    flat = traverse_util.flatten_dict(global_arrays.to_host(adapter), sep="/")
    adapted = {path.rsplit("/", 1)[0] for path in flat}
    unknown = adapted - {place.path for place in places.values() if len(place.shape) == 2}
    if unknown:
        raise WeightsError(f"adapter: {', '.join(sorted(unknown))}: no linear layer in the published layout")
    found, zero = {}, {}
    for key, place in places.items():
        if place.path not in adapted:
            continue
        a, b = (flat[f"{place.path}/{part}"] for part in "ab")
        if place.layer is not None:
            a, b = a[place.layer], b[place.layer]
        pair = {"A": np.asarray(a.T, order="C"), "B": np.asarray(place.entry.layout.to_published(b), order="C")}
        wanted = ((a.shape[-1], place.shape[1]), (place.shape[0], a.shape[-1]))
        if (pair["A"].shape, pair["B"].shape) != wanted:
            got = f"a {list(a.shape)} and b {list(b.shape)}"
            raise WeightsError(f"adapter: {place.path}: got {got}, which do not fit a weight of {list(place.shape)}")
        (found if a.any() or b.any() else zero)[key] = pair
    return found or zero


def _targets(adapted: set[str], others: set[str]) -> list[str] | str:
    """Names the adapted modules as PEFT does: by ends of names if those hit nothing else, or by one expression.

    Args:
      adapted: names of the modules that are to be hit.
      others: names of modules that must not be.
    """
    parents = {name.rsplit(".", depth)[0] for name in adapted | others for depth in range(1, name.count(".") + 1)}
    others = (others | parents) - adapted
    suffixes = set()
    for name in sorted(adapted):
        parts = name.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        # A bare number would also hit modules without parameters, e.g. an activation, which no table lists.
        safe = (end for end in ends if not end.isdigit() and not any(_ends(other, end) for other in others))
        suffix = next(safe, None)
        if suffix is None:
            return "|".join(re.escape(module) for module in sorted(adapted))
        suffixes.add(suffix)
    return sorted(suffixes)


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")

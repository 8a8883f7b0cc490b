"""The published UAE checkpoint: an encoder with its projector, a decoder, both adapters, and what paints pixels.

    llm_model/   Qwen2.5-VL, sharded, and `projector.{0,2}.*` among its tensors; tokenizer and processor files
    llm_lora/    the state dict of the whole PEFT-wrapped encoder: adapters, wrapped weights, maybe the projector again
    dit/         a diffusers SD3Transformer2DModel
    dit_lora/    a PEFT adapter of it
    SD3/         of a diffusers SD3.5 pipeline: vae, text_encoder, text_encoder_2, scheduler, tokenizers

Ours may hold `inference.json` and `scorers/` as well, which the published one lacks.

The published code loads `llm_lora` last and not strictly, so what it holds wins. Our native layout has a folder per
part in place of these, and `uae.json`.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uae_jax.models.lora import LoRAConfig
from uae_jax.parallel import sharding
from uae_jax.weights import checkpoint, native, peft, pretrained, projector, qwen2_5_vl, shapes_only, transfer
from uae_jax.weights.architecture import Pretrained
from uae_jax.weights.checkpoint import UAE_NATIVE
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.safetensors import Tensor

FORMAT = 1
LLM, LLM_LORA, DIT, DIT_LORA, SD3 = "llm_model", "llm_lora", "dit", "dit_lora", "SD3"
INFERENCE = "inference.json"  # settings that suit the model, see `uae_jax.defaults`
SCORERS = "scorers"  # a folder of each scorer that belongs to the model
PUBLISHED_RANK, PUBLISHED_ALPHA = 32, 64.0  # of llm_lora, which states its rank by its shapes and alpha nowhere
_SD3_PARTS = ("vae", "text_encoder", "text_encoder_2")
_PARTS = ("encoder", "projector", "decoder", *_SD3_PARTS)
_WRAPPED = "model.base_model.model."  # what the keys of llm_lora begin with
_FILES = "files"
_SCHEDULER = f"{SD3}/scheduler/scheduler_config.json"
_OTHER_SCHEDULES = ("use_dynamic_shifting", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas")
_OTHER_SCHEDULES += ("use_beta_sigmas", "invert_sigmas", "stochastic_sampling")
# What either layout may hold, scorers left out, which take no part in what the model does.
CONTENT = (UAE_NATIVE, *_PARTS, "encoder_lora", "decoder_lora", _FILES, LLM, LLM_LORA, DIT, DIT_LORA, SD3, INFERENCE)


@dataclasses.dataclass
class Adapter:
    """A LoRA tree and what it means."""

    config: LoRAConfig
    params: Any


@dataclasses.dataclass
class UAEWeights:
    """All parts of a UAE checkpoint.

    Attributes:
      encoder: Qwen2.5-VL.
      projector: hidden states -> conditioning.
      decoder: SD3 transformer.
      vae, text_encoder, text_encoder_2: of SD3; the text encoders (CLIP-L, CLIP-G) only make one constant vector.
      encoder_lora, decoder_lora: adapters, or None.
      files: everything else that belongs to the folder (tokenizers, processor, scheduler), by its published path.
      scorers: the folder of those that belong to the model, which go with it as they are, or None.
    """

    encoder: Pretrained
    projector: Pretrained
    decoder: Pretrained
    vae: Pretrained
    text_encoder: Pretrained
    text_encoder_2: Pretrained
    encoder_lora: Adapter | None = None
    decoder_lora: Adapter | None = None
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    scorers: Path | None = None


def read_files(name_or_path: str | os.PathLike) -> dict[str, bytes]:
    """Reads what a folder holds beside weights, see `UAEWeights.files`, without the weights."""
    root = checkpoint.resolve(name_or_path)
    if (root / UAE_NATIVE).is_file():
        return _read_native_files(root)
    return _read_files(root)


def is_published(folder: Path) -> bool:
    """Whether a folder is in the published UAE layout."""
    return (folder / LLM).is_dir() and (folder / DIT).is_dir()


def look_for(name_or_path: str | os.PathLike) -> None:
    """Raises `WeightsError` where `load` will, having read no weights."""
    root = checkpoint.resolve(name_or_path)
    shapes_only.tried(lambda: load(root))


def check_layout(root: Path) -> None:
    """Raises `WeightsError` where a folder is in neither layout; says where one is, or what to do."""
    missing = [name for name in (LLM, DIT, SD3) if not (root / name).is_dir()]
    if not missing or (root / UAE_NATIVE).is_file():
        return
    near = [root.parent, *sorted(path for path in root.glob("*") if path.is_dir())] if root.is_dir() else []
    found = next((path for path in near if is_published(path) or (path / UAE_NATIVE).is_file()), None)
    if found is not None:
        remedy = f"{found} is one: name that"
    elif len(missing) < 3:
        remedy = "download or copy it again"
    else:
        remedy = f"wanted {LLM}, {DIT} and {SD3} (and maybe {LLM_LORA}, {DIT_LORA}), or {UAE_NATIVE}"
    raise WeightsError(f"{root}: no UAE checkpoint: {', '.join(missing)} {_are(missing)} not in it; {remedy}")


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def load(
    name_or_path: str | os.PathLike,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules | None = None,
    progress: transfer.Progress | None = None,
) -> UAEWeights:
    """Loads a UAE folder in the published or the native layout; adapters keep their stored dtype.

    Args:
      name_or_path: local folder or Hugging Face repository name.
      dtype: of the base parameters; None keeps the files'.
      mesh: parameters land in their shards on it; None puts them on the default device.
      rules: logical axis -> mesh axes; defaults to `sharding.DEFAULT_RULES`.
      progress: called with the bytes read, after each tensor.

    Raises:
      WeightsError: if a part is missing or does not fit; before that part is allocated.
    """
    root = checkpoint.resolve(name_or_path)
    place = {"mesh": mesh, "rules": rules}
    to = {"dtype": dtype, "progress": progress, **place}
    weights = _load_native(root, to, place) if (root / UAE_NATIVE).is_file() else _load_published(root, to, place)
    scheduler_shift(weights)  # which may not be there to be had
    return weights


def _load_published(root: Path, to: dict, place: dict) -> UAEWeights:
    check_layout(root)
    encoder, head, encoder_lora = _load_encoder(root, to, place)
    decoder = pretrained.load_pretrained(root / DIT, **to)
    return UAEWeights(
        encoder=encoder,
        projector=head,
        decoder=decoder,
        **{part: pretrained.load_pretrained(root / SD3 / part, **to) for part in _SD3_PARTS},
        encoder_lora=encoder_lora,
        decoder_lora=_load_adapter(root / DIT_LORA, decoder, place) if (root / DIT_LORA).is_dir() else None,
        files=_read_files(root),
        scorers=_scorers(root),
    )


def read_sizes(name_or_path: str | os.PathLike) -> tuple[Any, Any, Any]:
    """The configs of a checkpoint's encoder, decoder and VAE; no weights are looked at. Raises as `check_layout`."""
    root = checkpoint.resolve(name_or_path)
    check_layout(root)
    native = (root / UAE_NATIVE).is_file()
    folders = ("encoder", "decoder", "vae") if native else (LLM, DIT, f"{SD3}/vae")
    encoder, decoder, vae = (pretrained.read_config(root / folder)[1] for folder in folders)
    return encoder, decoder, vae


def on_host(weights: UAEWeights) -> UAEWeights:
    """The same with NumPy arrays; programs that get them copy them to the device and free them there."""
    parts = {name: getattr(weights, name) for name in (*_PARTS, "encoder_lora", "decoder_lora")}
    held = {
        name: dataclasses.replace(part, params=jax.tree.map(np.asarray, part.params))
        for name, part in parts.items()
        if part is not None
    }
    return dataclasses.replace(weights, **held)


def _load_adapter(folder: Path, base: Pretrained, place: dict) -> Adapter:
    return Adapter(*peft.load_adapter(folder, base.architecture, base.config, **place))


def _load_encoder(root: Path, to: dict, place: dict) -> tuple[Pretrained, Pretrained, Adapter | None]:
    architecture = qwen2_5_vl.ARCHITECTURE
    config = architecture.config_from_json(checkpoint.read_json(root / LLM / "config.json"))
    body, head = _split_projector(checkpoint.open_checkpoint(root / LLM))
    tensors = dict(architecture.canonical(_unwrapped(body), config))
    adapter = None
    if (root / LLM_LORA).is_dir():
        source = str(root / LLM_LORA)
        deltas, rest = peft.split_wrapped(checkpoint.open_checkpoint(root / LLM_LORA))
        body, head_again = _split_projector(rest)
        head |= head_again
        tensors |= architecture.canonical(_unwrapped(body), config)
        if deltas:
            alpha = PUBLISHED_ALPHA
            if (root / LLM_LORA / peft.CONFIG).is_file():
                alpha = peft.read_config(root / LLM_LORA / peft.CONFIG)[1]
            elif (rank := peft.rank_of(deltas)) != PUBLISHED_RANK:
                raise WeightsError(
                    f"{source}: no {peft.CONFIG} says its alpha, which is known of the published one, of rank "
                    f"{PUBLISHED_RANK}, and this is of rank {rank}; put one there with r and lora_alpha"
                )
            adapter = Adapter(
                *peft.adapter_from_tensors(architecture, config, deltas, source=source, alpha=alpha, **place)
            )
    encoder = pretrained.from_tensors(architecture, config, tensors, source=str(root / LLM), **to)
    sizes = projector.config_from_tensors(head, str(root / LLM))
    source = f"{root / LLM} (projector)"
    return encoder, pretrained.from_tensors(projector.ARCHITECTURE, sizes, head, source=source, **to), adapter


def _split_projector(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parts a state dict into the encoder's and the projector's tensors, the latter from "projector." on."""
    head = {key[key.index("projector.") :]: tensor for key, tensor in tensors.items() if "projector." in key}
    return {key: tensor for key, tensor in tensors.items() if "projector." not in key}, head


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops the "model." in front of every key that a wrapper class with a member `model` adds."""
    if any(key.startswith("model.model.") or key.startswith("model.lm_head.") for key in tensors):
        return {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    return dict(tensors)


def _read_files(root: Path) -> dict[str, bytes]:
    """Tokenizer, processor and scheduler files; not weights, nor configs that are written anew from the sizes."""
    folders = [LLM, *(f"{SD3}/{part}" for part in ("", "scheduler", "tokenizer", "tokenizer_2"))]
    found = {INFERENCE: (root / INFERENCE).read_bytes()} if (root / INFERENCE).is_file() else {}
    for folder in folders:
        found |= {str(file.relative_to(root)): file.read_bytes() for file in checkpoint.text_files(root / folder)}
    return found


def _load_native(root: Path, to: dict, place: dict) -> UAEWeights:
    manifest = checkpoint.read_json(root / UAE_NATIVE)
    if manifest.get("format") != FORMAT:
        raise WeightsError(f"{root / UAE_NATIVE}: format is {manifest.get('format')!r}, wanted {FORMAT}")
    parts = {part: native.load_native(root / part, **to) for part in _PARTS}
    adapters = {
        f"{part}_lora": _load_adapter(root / f"{part}_lora", parts[part], place)
        for part in ("encoder", "decoder")
        if manifest.get(f"{part}_lora")
    }
    return UAEWeights(**parts, **adapters, files=_read_native_files(root), scorers=_scorers(root))


def _scorers(root: Path) -> Path | None:
    return root / SCORERS if (root / SCORERS).is_dir() else None


def _copy_scorers(weights: UAEWeights, root: Path) -> None:
    if weights.scorers is not None:
        shutil.copytree(weights.scorers, root / SCORERS)


def _read_native_files(root: Path) -> dict[str, bytes]:
    files = (file for file in sorted((root / _FILES).rglob("*")) if file.is_file())
    return {str(file.relative_to(root / _FILES)): file.read_bytes() for file in files}


def save_native(weights: UAEWeights, folder: str | os.PathLike, *, force: bool = False) -> None:
    """Writes the native layout: a folder per part, adapters as PEFT has them, and `uae.json`.

    Raises:
      FileExistsError: see `checkpoint.NewFolder`.
    """
    with checkpoint.NewFolder(folder, force=force) as temporary:
        for part in _PARTS:
            native.save_native(getattr(weights, part), temporary / part)
        for part in ("encoder", "decoder"):
            _save_adapter(temporary / f"{part}_lora", getattr(weights, f"{part}_lora"), getattr(weights, part))
        checkpoint.write_files(temporary / _FILES, weights.files)
        _copy_scorers(weights, temporary)
        manifest = {f"{part}_lora": getattr(weights, f"{part}_lora") is not None for part in ("encoder", "decoder")}
        checkpoint.write_json(temporary / UAE_NATIVE, {"format": FORMAT, **manifest})


def save_published(
    weights: UAEWeights,
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    force: bool = False,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes the published layout, which the authors' inference code loads.

    `llm_lora` gets the whole wrapped state dict, as published, and beside it an `adapter_config.json` with its alpha.

    Args:
      weights: one tensor at a time is held beside them.
      folder: what does not exist yet.
      dtype: of all models; None leaves each as it is. Adapters keep theirs.
      force: replaces a folder that holds a model.
      max_shard_bytes: of a file.

    Raises:
      FileExistsError: see `checkpoint.NewFolder`.
    """
    with checkpoint.NewFolder(folder, force=force) as root:
        for part, name in {"decoder": DIT, **{part: f"{SD3}/{part}" for part in _SD3_PARTS}}.items():
            (root / name).mkdir(parents=True)
            pretrained.write_model(getattr(weights, part), root / name, dtype=dtype, max_shard_bytes=max_shard_bytes)
        checkpoint.write_files(root, weights.files)
        _copy_scorers(weights, root)
        (root / LLM).mkdir(exist_ok=True)
        encoder = weights.encoder
        checkpoint.write_json(root / LLM / "config.json", encoder.architecture.config_to_json(encoder.config))
        base = _published_tensors(encoder, dtype) | _published_tensors(weights.projector, dtype)
        _write_lazily(root / LLM, base, max_shard_bytes)
        _save_adapter(root / DIT_LORA, weights.decoder_lora, weights.decoder)
        if weights.encoder_lora is not None:
            _save_adapter(root / LLM_LORA, weights.encoder_lora, encoder)
            (root / LLM_LORA / f"{peft.WEIGHTS}.safetensors").unlink(
                missing_ok=True
            )  # the whole state dict holds it too
            _write_lazily(root / LLM_LORA, _wrapped(base, encoder, weights.encoder_lora), max_shard_bytes)


_Lazy = dict[str, tuple[tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]


def _published_tensors(model: Pretrained, dtype: Any) -> _Lazy:
    """Published key -> shape, dtype and how to get the value."""
    table = model.architecture.table(model.config)
    read = transfer.to_published(table, model.params, dtype)
    shapes = transfer.published_shapes(table, model.params, dtype)
    return {key: (shape, dtype, lambda key=key: read(key)) for key, (shape, dtype) in shapes.items()}


def _wrapped(base: _Lazy, encoder: Pretrained, adapter: Adapter) -> _Lazy:
    """The state dict of the PEFT-wrapped encoder with its projector."""
    factors = peft.published_factors(adapter.params, encoder.architecture, encoder.config)
    result: _Lazy = {}
    for key, value in base.items():
        module, _, parameter = key.rpartition(".")
        if key.startswith("projector."):
            result[key] = value
        elif f"{module}.weight" not in factors:
            result[_WRAPPED + key] = value
        else:
            result[f"{_WRAPPED}{module}.base_layer.{parameter}"] = value
    for key, pair in factors.items():
        for part, array in pair.items():
            name = f"{_WRAPPED}{key.removesuffix('.weight')}.lora_{part}.default.weight"
            result[name] = (array.shape, array.dtype, lambda array=array: array)
    return result


def _write_lazily(folder: Path, tensors: _Lazy, max_shard_bytes: int) -> None:
    shapes = {key: (shape, dtype) for key, (shape, dtype, _) in tensors.items()}
    checkpoint.write_checkpoint(
        folder, checkpoint.MODEL, shapes, lambda key: tensors[key][2](), max_shard_bytes=max_shard_bytes
    )


def _save_adapter(folder: Path, adapter: Adapter | None, base: Pretrained) -> None:
    if adapter is not None:
        peft.save_adapter(folder, adapter.params, adapter.config, base.architecture, base.config)


@contextlib.contextmanager
def files_on_disk(weights: UAEWeights) -> Iterator[Path]:
    """Lays `weights.files` out in a temporary folder, for libraries that read folders only."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write_files(Path(folder), weights.files)
        yield Path(folder)


def scheduler_shift(weights: UAEWeights) -> float:
    """The noise schedule's shift, from SD3's `scheduler_config.json`; that of SD3 where there is none.

    Raises:
      WeightsError: if the file asks for a schedule that is not one of a static shift.
    """
    if _SCHEDULER not in weights.files:
        return 3.0
    stated = json.loads(weights.files[_SCHEDULER])
    if others := [name for name in _OTHER_SCHEDULES if stated.get(name)]:
        raise WeightsError(f"{_SCHEDULER}: {others[0]} is {stated[others[0]]!r}, wanted a static shift alone")
    return float(stated.get("shift", 1.0))  # what diffusers takes where it is left out

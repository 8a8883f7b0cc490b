"""What does not change while a decoder is trained, computed once: latents of images, hidden states of captions.

The result is an ArrayRecord file for stage `pretrain` with `resolution` 0 and `precomputed`. A record has the array
"latents" [h, w, 2 Z] (mean and logarithm of the variance of the VAE's posterior), the captions "caption_0", ... and for
each the array "context:caption_0" [length, D], the encoder's hidden states before the projector. Beside the file,
FILE.settings.json says by digests of which encoder and VAE they are.

The work is done in parts, each a file that is there whole or not at all; a run that was interrupted goes on behind
the last one.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from uae_jax import batching
from uae_jax.data import transforms
from uae_jax.data.caption_files import settings_file, write_whole
from uae_jax.data.config import DataConfig
from uae_jax.data.images import open_image
from uae_jax.data.prompts import Buckets
from uae_jax.data.reading import draw_caption
from uae_jax.data.records import Record
from uae_jax.data.sources import open_source
from uae_jax.data.sources.arrayrecord import ArrayRecordSource, write_array_record
from uae_jax.data.token_rows import RowBuilder
from uae_jax.data.validity import BAD_RECORD, RecordError, Tally
from uae_jax.engine import NEGATIVE_PROMPT
from uae_jax.models import lora
from uae_jax.models.runtime import Runtime
from uae_jax.parallel.mesh import make_mesh
from uae_jax.stages import images, models, painted_text, uae_models
from uae_jax.stages.encoded import digests
from uae_jax.stages.pretrain_settings import CONTEXT, LATENTS
from uae_jax.stages.uae_models import UAEParts

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
_MANIFEST, _MODELS = "settings.json", "models.json"


@dataclasses.dataclass(frozen=True)
class EncodeSettings:
    """How a data set is encoded.

    Attributes:
      model, encoder_from, vae_from: as in the settings of `pretrain`; take the same ones there.
      negative: negative prompt of the training to come, for no text is read at a smaller length; None takes the
        model's.
      captions: drawn per record, by the sources' weights.
      max_tokens: of a caption; longer ones are cut, and counted.
      token_bucket: the smallest length that texts are padded to.
      batch_size: images at a time.
      part: records per part.
      seed: of the draws.
      dtype: of what is stored.
      compute: dtype of the encoder's activations; the VAE is always float32.
    """

    model: str = "tiny"
    encoder_from: str = ""
    vae_from: str = ""
    negative: str | None = None
    captions: int = 1
    max_tokens: int = 512
    token_bucket: int = 32
    batch_size: int = 64
    part: int = 4096
    seed: int = 0
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    compute: str = "float32"

    def __post_init__(self):
        for name in ("captions", "max_tokens", "token_bucket", "batch_size", "part"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted at least 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, wanted one of {', '.join(DTYPES)}")
        models.runtime(self.compute)


def encode_dataset(
    data: DataConfig,
    settings: EncodeSettings,
    output: Path,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tally:
    """Encodes every record of the sources, one after another, into one file.

    Args:
      data: sources (their mixture weights are left aside) and sizes of images.
      settings: models and dtypes.
      output: the new file; a folder of this name with ".parts" behind it holds what is done until all is.
      mesh: defaults to all devices, the batch split over them.
      progress: called with the number of records that are done, after each batch.

    Returns:
      What was used and skipped.

    Raises:
      FileExistsError: if the file is there.
      ValueError: if the parts are of other settings, values do not fit the dtype, or images were to be drawn at random.
      TooManyBadRecords: see `DataConfig.max_bad_fraction`.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} would be overwritten; remove it, or choose another name")
    if not data.resolution:
        raise ValueError("data.resolution is 0, which leaves images out; wanted their side in pixels")
    if data.flip or data.crop != "center":
        raise ValueError(
            f"data.flip is {data.flip}, data.crop {data.crop!r}; wanted 0 and 'center', for each image is stored once"
        )
    parts = output.with_name(f"{output.name}.parts")
    _claim(parts, data, settings)
    sources = [open_source(source) for source in data.sources]
    places = [(number, index) for number, source in enumerate(sources) for index in range(len(source))]
    encoder, tally, files = None, Tally(), []
    for start in range(0, len(places), settings.part):
        file = parts / f"{start // settings.part:06d}.arrayrecord"
        chosen = places[start : start + settings.part]
        done = file.with_suffix(".json")
        if not done.exists():
            file.unlink(missing_ok=True)
            encoder = encoder or _opened(settings, mesh or make_mesh(data=-1), parts / _MODELS)
            own = Tally()
            read = _read(sources, chosen, start, data, settings, own)
            count = write_array_record(file, _encoded(encoder, read, settings.batch_size, own, progress))
            if not count:
                file.unlink()  # a file without records cannot be opened
            done.write_text(json.dumps(own.to_json()))
        elif progress is not None:
            progress(len(chosen))
        tally.merge(Tally.from_json(json.loads(done.read_text())))
        tally.check(data.max_bad_fraction)
        files.append(file)
    write_array_record(output, _joined([file for file in files if file.exists()]))
    if (parts / _MODELS).exists():  # parts of earlier versions have none
        write_whole(settings_file(output), (parts / _MODELS).read_text())
    shutil.rmtree(parts)
    return tally


def _opened(settings: EncodeSettings, mesh: Mesh, models: Path) -> "DatasetEncoder":
    """Loads the models, and remembers which; refuses others than those of the parts that there are."""
    encoder = DatasetEncoder(settings, mesh)
    if models.exists() and json.loads(models.read_text()) != encoder.models:
        raise ValueError(f"{models.parent}: begun with other weights; remove it, or choose another output")
    models.write_text(json.dumps(encoder.models, indent=2) + "\n")
    return encoder


class DatasetEncoder:
    """The encoder and the VAE, compiled for batches."""

    def __init__(self, settings: EncodeSettings, mesh: Mesh):
        """Loads the models."""
        self.settings, self.mesh = settings, mesh
        parts = UAEParts(settings.model, settings.encoder_from, vae=settings.vae_from)
        uae_models.check_parts(parts)
        weights = uae_models.open_uae(parts, settings.seed, mesh)
        self.models = digests(weights)
        self.prompts = uae_models.prompt_builder(weights, buckets=Buckets(settings.token_bucket))
        self.rows = RowBuilder(self.prompts, settings.max_tokens)
        negative = settings.negative
        if negative is None:
            negative = uae_models.advice(weights, "paint", "negative_prompt", NEGATIVE_PROMPT)
        self.negative_length = painted_text.negative_tokens(self.prompts, negative)["tokens"].shape[1] - 1
        adapter = weights.encoder_lora
        self.variables = {"params": weights.encoder.params}
        if adapter is not None:
            self.variables |= lora.collection(adapter.params, adapter.config)
        self.vae_params = jax.tree.map(lambda x: x.astype(jnp.float32), weights.vae.params)
        encoder = weights.encoder.architecture.module(weights.encoder.config, Runtime(jnp.dtype(settings.compute)))
        vae = weights.vae.architecture.module(weights.vae.config, Runtime())

        def moments(params: Any, pixels: jax.Array) -> jax.Array:
            posterior = vae.apply({"params": params}, images.to_pm1(pixels), method="encode")
            return jnp.concatenate([posterior.mean, posterior.logvar], axis=-1)

        self._moments = jax.jit(moments)
        self._states = jax.jit(lambda variables, batch: painted_text.hidden_states(encoder, variables, batch))

    def __call__(self, pixels: np.ndarray, captions: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Encodes u8[B, H, W, 3] and some captions.

        Returns:
          (latents [B, h, w, 2 Z], per caption its hidden states [length, D], bool per caption whether it was cut).
        """
        settings = self.settings
        rows = [self.prompts, self.rows, captions, self.negative_length, settings.token_bucket]
        batch = painted_text.tokens_of(*rows)
        lengths, cut = batch.pop("lengths"), batch.pop("cut")
        with jax.set_mesh(self.mesh):
            latents = self._moments(self.vae_params, batching.place(pixels, self.mesh))
            placed = {name: batching.place(leaf, self.mesh) for name, leaf in batch.items()}
            states = self._states(self.variables, placed)
        latents, states = self._stored(latents), self._stored(states)
        return latents, [row[:length] for row, length in zip(states, lengths, strict=True)], cut

    def _stored(self, values: jax.Array) -> np.ndarray:
        stored = np.asarray(values, np.float32).astype(DTYPES[self.settings.dtype])
        if not np.isfinite(stored.astype(np.float32)).all():
            raise ValueError(f"a value does not fit {self.settings.dtype}; take dtype 'bfloat16' or 'float32'")
        return stored


@dataclasses.dataclass(frozen=True)
class _Read:
    id: str
    pixels: np.ndarray
    captions: list[str]


def _read(
    sources: Sequence[Any],
    places: Sequence[tuple[int, int]],
    first: int,
    data: DataConfig,
    settings: EncodeSettings,
    tally: Tally,
) -> Iterator[_Read]:
    """Decodes records and draws their captions; bad ones are counted and left out."""
    shapes = transforms.bucket_shapes(data.resolution, data.aspects, data.multiple_of)
    for position, (number, index) in enumerate(places, start=first):
        id, converted = f"{sources[number].name}:{index}", []
        try:
            record = sources[number][index]
            id = record.id
            rng = np.random.default_rng((settings.seed, position))
            drawn = [draw_caption(record.captions, data.sources[number], rng)[1] for _ in range(settings.captions)]
            if record.image is None:
                raise RecordError("missing", "no image")
            image = open_image(record.image, data.limits, note=converted.append)
            shape = shapes[transforms.nearest_bucket(image.size, shapes)]
            pixels = transforms.resize_and_crop(image, shape, "center")
        except BAD_RECORD as error:
            tally.skip(id, error.kind)
            continue
        tally.use(id, converted)
        yield _Read(id, pixels, drawn)


def _encoded(
    encoder: DatasetEncoder,
    read: Iterator[_Read],
    batch_size: int,
    tally: Tally,
    progress: Callable[[int], None] | None,
) -> Iterator[Record]:
    """Batches records of one shape and encodes them; a batch that is not full is filled up with copies."""
    waiting: dict[tuple[int, ...], list[_Read]] = {}

    def encode(items: list[_Read]) -> Iterator[Record]:
        filled = items + items[-1:] * (batch_size - len(items))
        captions = [caption for item in filled for caption in item.captions]
        latents, states, cut = encoder(np.stack([item.pixels for item in filled]), captions)
        each = len(items[0].captions)
        for i, item in enumerate(items):
            own = {f"caption_{j}": caption for j, caption in enumerate(item.captions)}
            contexts = {f"{CONTEXT}:caption_{j}": states[i * each + j] for j in range(each)}
            if cut[i * each : (i + 1) * each].any():
                tally.convert(item.id, "cut")
            yield Record(item.id, None, own, {LATENTS: latents[i], **contexts})
        if progress is not None:
            progress(len(items))

    for item in read:
        group = waiting.setdefault(item.pixels.shape, [])
        group.append(item)
        if len(group) == batch_size:
            yield from encode(waiting.pop(item.pixels.shape))
    for group in waiting.values():
        yield from encode(group)


def _claim(parts: Path, data: DataConfig, settings: EncodeSettings) -> None:
    """Makes the folder of parts, or checks that the one there is of the same settings."""
    stated = json.loads(json.dumps({"data": dataclasses.asdict(data), "settings": dataclasses.asdict(settings)}))
    manifest = parts / _MANIFEST
    if manifest.exists() and json.loads(manifest.read_text()) != stated:
        raise ValueError(f"{parts}: begun with other settings; remove it, or choose another output")
    parts.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps(stated, indent=2))


def _joined(files: Sequence[Path]) -> Iterator[Record]:
    for file in files:
        source = ArrayRecordSource(str(file))
        for index in range(len(source)):
            yield source[index]

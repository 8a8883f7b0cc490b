"""One batch at a time: the compiled programs behind `UAE`, and what they are asked to do.

Everything that depends on a shape happens on the host or inside a program, never as a loose operation on the device,
so a batch whose shapes were seen before compiles nothing.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from uae_jax import batching
from uae_jax.data.prompts import CAPTION_QUESTION, PromptBuilder, bucket
from uae_jax.models import lora
from uae_jax.models.qwen2_5_vl.prompts import Prompts
from uae_jax.models.runtime import Runtime
from uae_jax.parallel.mesh import use_mesh
from uae_jax.sampling import conditioning, flow, painting, text
from uae_jax.sampling.conditioning import Conditioning
from uae_jax.sampling.tokens import TokenSampling, token_sampling
from uae_jax.weights.uae import Adapter, UAEWeights

NEGATIVE_PROMPT = "Generate a random, low quality, ugly, blur, bad and anime, cartoon image."  # the published model's
MOST_TOKENS = 32_768  # of an answer, as far as the published encoder sees
LARGEST = 1024  # side of a painting, pixels, unless a larger one is asked for
ADAPTERS = ("current", "base")
INTERFACES = ("text", "answer_hidden")

Latent = tuple[int, int, int]  # height, width, channels
Conditions = tuple[Conditioning, Conditioning | None]  # positive, and negative where there is guidance


@dataclasses.dataclass(frozen=True)
class CaptionSettings:
    """How captions are written; see `UAE.caption`."""

    prompt: str | None = None
    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not 1 <= self.max_new_tokens <= MOST_TOKENS:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, wanted 1 to {MOST_TOKENS}")
        token_sampling(self.temperature, self.top_p, self.top_k, self.repetition_penalty)  # refuses what is no setting

    @property
    def sampling(self) -> TokenSampling:
        """How tokens are drawn."""
        return token_sampling(self.temperature, self.top_p, self.top_k, self.repetition_penalty)

    @property
    def question(self) -> str:
        """What the encoder is asked."""
        return CAPTION_QUESTION if self.prompt is None else self.prompt


@dataclasses.dataclass(frozen=True)
class PaintSettings:
    """How images are painted; see `UAE.generate`."""

    steps: int = 40
    guidance: float = 5.0
    size: int | tuple[int, int] | None = None
    negative_prompt: str | None = None
    conditioning: str = "current"
    sigma_compat: str = "diffusers"

    def __post_init__(self):
        if self.conditioning not in ADAPTERS:
            raise ValueError(f"conditioning is {self.conditioning!r}, wanted one of {', '.join(ADAPTERS)}")
        if not abs(self.guidance) < 1e6:  # where velocities are no numbers any more, pictures are black
            raise ValueError(f"guidance is {self.guidance}, wanted a number; 1 is off")
        flow.sigmas(self.steps, sigma_compat=self.sigma_compat)  # refuses what is no setting

    @property
    def negative(self) -> str | None:
        """The text to move away from, or None without guidance."""
        if self.guidance <= 1:
            return None
        return NEGATIVE_PROMPT if self.negative_prompt is None else self.negative_prompt


@dataclasses.dataclass(frozen=True)
class Answers:
    """A batch of captions: what they say, what was asked, and the tokens on device."""

    texts: list[str]
    prompts: Prompts
    generation: text.Generation


class Engine:
    """Runs batches. Holds weights and compiled programs, no other state."""

    def __init__(
        self,
        weights: UAEWeights,
        prompts: PromptBuilder,
        runtime: Runtime,
        mesh: Mesh | None = None,
        shift: float = 3.0,
    ):
        """Keeps what it is given; arguments as `UAE`."""
        self.weights, self.prompts, self.runtime, self.mesh, self.shift = weights, prompts, runtime, mesh, shift
        self.encoder, self.projector, self.decoder, self.vae = (
            part.architecture.module(part.config, runtime)
            for part in (weights.encoder, weights.projector, weights.decoder, weights.vae)
        )
        self._encoder_variables = {
            "current": _variables(weights.encoder, weights.encoder_lora),
            "base": _variables(weights.encoder, None),
        }
        self._decoder_variables = _variables(weights.decoder, weights.decoder_lora)
        self._write = jax.jit(
            functools.partial(text.generate, self.encoder), static_argnames=("stop_ids", "pad_id", "max_new_tokens")
        )
        self._read = jax.jit(self._read_text, static_argnames="guided")
        self._reread = jax.jit(self._read_answers)
        self._take = jax.jit(lambda tree, rows: jax.tree.map(lambda leaf: leaf[rows], tree))
        self._noise = jax.jit(flow.initial_noise, static_argnums=1)
        self._paint = jax.jit(self._painted)

    def write(
        self,
        images: Sequence[Image.Image | None],
        settings: CaptionSettings,
        keys: jax.Array,
        count: int,
        questions: Sequence[str] | None = None,
    ) -> Answers:
        """Captions a batch, or answers questions; rows from `count` on only fill it and are not decoded.

        Args:
          images: RGB; None where a row has none.
          settings: the question, and how tokens are drawn.
          keys: a PRNG key per row.
          count: rows that are wanted.
          questions: one for each row, instead of that of the settings.

        Raises:
          ValueError: if something overflowed.
        """
        asked = [settings.question] * len(images) if questions is None else questions
        shown = [[] if image is None else [image] for image in images]
        prompts = self._place(self.prompts.ask(shown, asked))
        with self._on_mesh():
            generation = self._write(
                self._encoder_variables["current"],
                prompts,
                keys,
                settings.sampling,
                stop_ids=self.prompts.stop_ids,
                pad_id=self.prompts.pad_id,
                max_new_tokens=new_token_slots(settings),
                limit=np.int32(settings.max_new_tokens),
                active=np.arange(len(images)) < count,
            )
        tokens, lengths, logprobs = jax.device_get((generation.tokens, generation.lengths, generation.logprobs))
        self._refuse_no_numbers("a caption", np.isfinite(logprobs[:count]).all())
        texts = [self.prompts.decode(tokens[row, : lengths[row]]) for row in range(count)]
        return Answers(texts, prompts, generation)

    def read(self, texts: Sequence[str], settings: PaintSettings) -> Conditions:
        """Conditioning of each text, and of the negative beside it, both padded to one length as published."""
        rows = [self.prompts.encode_user(t, role="generate") for t in texts]
        lengths = np.asarray([len(row) for row in rows], np.int32)
        guided = settings.negative is not None
        if guided:
            away = self.prompts.encode_user(settings.negative, role="generate")
            rows += [away] * len(rows)
            lengths = np.tile(np.maximum(lengths, len(away)), 2)
        with self._on_mesh():
            return self._read(
                self._encoder_variables[settings.conditioning],
                self.weights.projector.params,
                self._place(self.prompts.pack(rows)),
                lengths,
                guided=guided,
            )

    def reread(self, answers: Answers, settings: PaintSettings) -> Conditions:
        """Conditioning of each answer by the encoder's states while it wrote; the negative is read as text."""
        away = None
        if settings.negative is not None:
            away = self.prompts.paint([settings.negative])
        with self._on_mesh():
            return self._reread(
                self._encoder_variables[settings.conditioning],
                self.weights.projector.params,
                answers.prompts,
                answers.generation,
                away,
            )

    def take(self, conditions: Conditions, rows: Sequence[int]) -> Conditions:
        """Some rows of a batch."""
        with self._on_mesh():
            return self._take(conditions, np.asarray(rows, np.int32))

    def noise(self, keys: jax.Array, shape: Latent) -> jax.Array:
        """f32[B, h, w, Z], an image's noise by its key."""
        with self._on_mesh():
            return self._noise(keys, shape)

    def paint(self, conditions: Conditions, noise: Any, settings: PaintSettings) -> np.ndarray:
        """Paints a batch: u8[B, H, W, 3].

        Args:
          conditions: B rows.
          noise: f32[B, h, w, Z].
          settings: steps and guidance.

        Raises:
          ValueError: if something overflowed.
        """
        schedule = flow.make_schedule(settings.steps, shift=self.shift, sigma_compat=settings.sigma_compat)
        with self._on_mesh():
            pixels = self._paint(
                self._decoder_variables,
                self.weights.vae.params,
                schedule,
                self.pooled,
                *conditions,
                np.float32(settings.guidance),
                batching.place(noise, self.mesh),
            )
        pixels, fine = jax.device_get(pixels)
        self._refuse_no_numbers("a painting", fine)
        return pixels

    def sides(self, settings: PaintSettings) -> tuple[int, int]:
        """Height and width in pixels; where nobody says, what the decoder was made for, and at most 1024."""
        size = settings.size
        if size is None:
            size = min(self.decoder.config.sample_size * self.vae.config.downsampling, LARGEST)
        return (size, size) if isinstance(size, int) else tuple(size)

    def latent_shape(self, settings: PaintSettings) -> Latent:
        """(h, w, Z) of an image's latents.

        Raises:
          ValueError: on a size that the decoder cannot paint.
        """
        height, width = self.sides(settings)
        check_sides(height, width, self.decoder.config, self.vae.config)
        scale = self.vae.config.downsampling
        return height // scale, width // scale, self.vae.config.latent_channels

    @functools.cached_property
    def pooled(self) -> jax.Array:
        """f32[V], the decoder's constant pooled vector: both text encoders' projections of the empty text."""
        vectors = []
        for part in (self.weights.text_encoder, self.weights.text_encoder_2):
            module = part.architecture.module(part.config, self.runtime)
            # CLIP's start and end of text are the last two tokens; causal, so padding behind them does not matter.
            empty = jnp.asarray([[part.config.vocab - 2, part.config.vocab - 1]], jnp.int32)
            with self._on_mesh():
                features, _ = jax.jit(lambda p, t, m=module: m.apply({"params": p}, t))(part.params, empty)
            vectors.append(features[0].astype(jnp.float32))
        return jnp.concatenate(vectors)

    def _painted(self, variables: Any, vae_params: Any, *args: Any) -> tuple[jax.Array, jax.Array]:
        images = painting.paint(self.decoder, variables, self.vae, vae_params, *args)
        return painting.to_uint8(images), jnp.isfinite(images).all()

    def _refuse_no_numbers(self, what: str, fine: Any) -> None:
        """Raises `ValueError` where an overflow would pass for a result: a black picture, one token over and over."""
        if not fine:
            raise ValueError(
                f"{what} has values that are no numbers, computed in {jnp.dtype(self.runtime.dtype)}; take bfloat16 or "
                "float32 (--dtype), or look whether weights or settings are what they should be"
            )

    def _read_text(
        self, variables: Any, projector_params: Any, prompts: Prompts, lengths: jax.Array, guided: bool
    ) -> Conditions:
        both = conditioning.text_conditioning(
            self.encoder, variables, self.projector, projector_params, prompts, lengths
        )
        if not guided:
            return both, None
        rows = lengths.shape[0] // 2
        return jax.tree.map(lambda x: x[:rows], both), jax.tree.map(lambda x: x[rows:], both)

    def _read_answers(
        self,
        variables: Any,
        projector_params: Any,
        prompts: Prompts,
        answers: text.Generation,
        away: Prompts | None,
    ) -> Conditions:
        told = conditioning.answer_conditioning(
            self.encoder, variables, self.projector, projector_params, prompts, answers.tokens, answers.lengths
        )
        if away is None:
            return told, None
        negative = conditioning.text_conditioning(self.encoder, variables, self.projector, projector_params, away)
        length = max(told.context.shape[1], negative.context.shape[1])
        negative = jax.tree.map(lambda x: jnp.repeat(x, told.context.shape[0], axis=0), _widened(negative, length))
        return _widened(told, length), negative

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.mesh is None else use_mesh(self.mesh)

    def _place(self, prompts: Prompts) -> Prompts:
        placed = jax.tree.map(lambda leaf: batching.place(leaf, self.mesh), prompts.replace(positions=None))
        return placed.replace(positions=batching.place(prompts.positions, self.mesh, axis=1))


def check_sides(height: int, width: int, decoder: Any, vae: Any) -> None:
    """Raises `ValueError` on a size that decoder and VAE, of these sizes, cannot paint."""
    unit = vae.downsampling * decoder.patch_size
    most = decoder.pos_embed_max_size * unit
    for side in (height, width):
        if side < unit or side % unit or side > most:
            raise ValueError(f"size is {height}x{width}, wanted sides in multiples of {unit} up to {most}")


def new_token_slots(settings: CaptionSettings) -> int:
    """Slots for an answer; a few sizes serve all limits."""
    return bucket(settings.max_new_tokens, 64)


def _variables(model: Any, adapter: Adapter | None) -> dict[str, Any]:
    if adapter is None:
        return {"params": model.params}
    return {"params": model.params, **lora.collection(adapter.params, adapter.config)}


def _widened(value: Conditioning, length: int) -> Conditioning:
    extra = length - value.context.shape[1]
    return Conditioning(jnp.pad(value.context, ((0, 0), (0, extra), (0, 0))), value.lengths)

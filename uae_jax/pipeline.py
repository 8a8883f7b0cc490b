"""`UAE`: captions images, paints captions, closes the loop.

    uae = UAE.from_pretrained("path/or/name")
    captions = uae.caption(images)
    paintings = uae.generate(captions)
    loop = uae.reconstruct(images)

Items are batched under a memory budget and padded to a few shapes, so nothing recompiles once those shapes were seen.
Every item has a PRNG key of its own, made of the seed and its number, so it does not matter which others it is with.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from uae_jax import batching
from uae_jax.batching import ItemKeys
from uae_jax.data.images import open_image
from uae_jax.data.prompts import PromptBuilder, bucket, check_tokenizer
from uae_jax.defaults import Defaults, given
from uae_jax.engine import INTERFACES, Answers, CaptionSettings, Engine, PaintSettings, new_token_slots
from uae_jax.models.runtime import Runtime
from uae_jax.rewards.scorers import Scorer
from uae_jax.weights import checkpoint, pretrained, transfer, uae
from uae_jax.weights.uae import UAEWeights

MAX_PIXELS = 65_536  # of an image that the encoder reads, unless its own limit is lower; the published model's setting


def fastest_dtype() -> str:
    """What models compute in unless they are told: float32 on a CPU, which is as fast in it, bfloat16 elsewhere."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


@dataclasses.dataclass
class Reconstruction:
    """One image's way through the loop.

    Attributes:
      caption: what the encoder wrote.
      image: what the decoder painted from it.
      scores: cosine similarity of original and painting, by scorer.
    """

    caption: str
    image: Image.Image
    scores: dict[str, float]


class UAE:
    """A loaded model. Holds weights and compiled programs, no other state."""

    def __init__(
        self,
        weights: UAEWeights,
        prompts: PromptBuilder,
        *,
        dtype: Any = jnp.bfloat16,
        mesh: Mesh | None = None,
        scorers: dict[str, Scorer] | None = None,
        memory_gb: float = 8.0,
        attention: str = "auto",
        shift: float = 3.0,
        defaults: Defaults = Defaults(),
    ):
        """Keeps what it is given; `from_pretrained` is the usual way in.

        Args:
          weights: all parts.
          prompts: tokenizer, chat template and image settings of the encoder.
          dtype: in which the models compute.
          mesh: that the weights lie on; batches are split over it.
          scorers: by name, for `reconstruct`.
          memory_gb: what one batch may take beside the weights, all devices together; it bounds the batch size.
          attention: kernel, see `uae_jax.models.attention`.
          shift: of the noise schedule, see `uae_jax.sampling.flow.sigmas`.
          defaults: settings of captions and paintings where a call gives none.
        """
        runtime = Runtime(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype), attention=attention)
        self.engine = Engine(weights, prompts, runtime, mesh, shift)
        self.weights, self.prompts = weights, prompts
        self.scorers = scorers or {}
        self.defaults = defaults
        self.memory = memory_gb * 1e9

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        dtype: Any = None,
        mesh: Mesh | None = None,
        scorers: dict[str, str | os.PathLike] | None = None,
        max_pixels: int | None = None,
        pad_positions: str = "ones",
        processor: str | os.PathLike | None = None,
        progress: transfer.Progress | None = None,
        staged: bool = False,
        **settings: Any,
    ) -> "UAE":
        """Loads a UAE folder, published or native.

        Args:
          name_or_path: "tiny", the model that comes with the package; a local folder or Hugging Face repository name.
          dtype: of the base parameters and of computation: "bfloat16", "float32" or "float16"; None: float32 on a CPU,
            which computes in it as fast, bfloat16 elsewhere.
          mesh: parameters land in their shards on it; None puts them on the default device.
          scorers: name -> folder of a CLIP, DINOv2 or DINOv3 model, for the scores of `reconstruct`; None: those in
            the folder `scorers` of the model, if it has one.
          max_pixels: area that an image is scaled down to before the encoder reads it; None: 65536, or the model's own
            limit where that is lower.
          pad_positions: "ones", "zeros" or "running": how padding that the decoder sees is numbered, which differs
            between versions of the published stack, see `uae_jax.models.qwen2_5_vl.positions.mrope_positions`.
          processor: folder or name of the base model, for tokenizer and image settings, where `llm_model` lacks them.
          progress: called with the bytes read, after each tensor.
          staged: the weights stay in the host's memory, and a part is on the device only while it computes: encoder and
            decoder need not fit there together. Each batch waits until its part is copied.
          **settings: of `UAE`.

        Raises:
          WeightsError: if the folder is no UAE checkpoint, or anything in it does not fit.
          ValueError: if there is no tokenizer in it, and no `processor`; if both `staged` and `mesh` are given.
        """
        if staged and mesh is not None:
            raise ValueError(
                "staged keeps weights in the memory of one host, wanted no mesh; a mesh splits them instead"
            )
        if dtype is None:
            dtype = fastest_dtype()
        root = checkpoint.resolve(name_or_path)
        if scorers is None:
            scorers = {folder.name: folder for folder in sorted((root / uae.SCORERS).glob("*")) if folder.is_dir()}
        _look_for(root, scorers.values(), processor)
        with jax.default_device(jax.local_devices(backend="cpu")[0]) if staged else contextlib.nullcontext():
            weights = uae.load(root, dtype=jnp.dtype(dtype), mesh=mesh, progress=progress)
        weights = uae.on_host(weights) if staged else weights
        with uae.files_on_disk(weights) as files:
            folder = files / uae.LLM if processor is None else checkpoint.resolve(processor)
            prompts = PromptBuilder.from_folder(folder, weights.encoder.config, max_pixels, pad_positions=pad_positions)
        if max_pixels is None and prompts.vision_inputs.max_pixels > MAX_PIXELS:
            prompts.vision_inputs = dataclasses.replace(prompts.vision_inputs, max_pixels=MAX_PIXELS)
        loaded = {name: Scorer.from_pretrained(path, mesh=mesh) for name, path in scorers.items()}
        settings = {"shift": uae.scheduler_shift(weights), "defaults": Defaults.from_files(weights.files)} | settings
        return cls(weights, prompts, dtype=dtype, mesh=mesh, scorers=loaded, **settings)

    def save_pretrained(self, path: str | os.PathLike, *, force: bool = False) -> None:
        """Writes the published layout, see `uae_jax.weights.uae.save_published`."""
        uae.save_published(self.weights, path, force=force)

    def caption(
        self,
        images: Any,
        prompt: str | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        first: int = 0,
    ) -> list[str]:
        """Describes images; a setting that is None is the model's own, see `uae_jax.defaults`.

        Args:
          images: one or a list of paths, PIL images or uint8 arrays [H, W, 3], of any sizes.
          prompt: the question; by default one for a complete description.
          max_new_tokens: at which a caption is cut off.
          temperature: 0 takes the likeliest token each time.
          top_p, top_k, repetition_penalty: see `uae_jax.sampling.tokens`.
          seed: of the draw.
          first: number of the first item, for who calls in parts: items are drawn by seed and number.

        Returns:
          One caption per image, in order.

        Raises:
          ImageError: if an image cannot be used, before anything is computed.
          ValueError: on a setting out of range.
        """
        settings = given(
            self.defaults.caption,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
        )
        return _in_order(self.iter_captions(images, settings, seed=seed, first=first))

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | tuple[int, int] | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        first: int = 0,
        latents: np.ndarray | None = None,
        conditioning: str | None = None,
        sigma_compat: str | None = None,
    ) -> list[Image.Image]:
        """Paints prompts; a setting that is None is the model's own, see `uae_jax.defaults`.

        Args:
          prompts: one or a list of texts.
          steps: of the sampler.
          guidance: classifier-free guidance; 1 or less turns it off, which halves the work.
          size: pixels of a side, or (height, width); multiples of 16 for SD3. By default what the decoder was made
            for, and at most 1024.
          negative_prompt: what to move away from.
          seed: of the noise.
          first: see `caption`.
          latents: f32[B, Z, h, w], the noise itself, as diffusers takes it; replaces the seed.
          conditioning: "current" reads prompts with the encoder's adapter, "base" without.
          sigma_compat: see `uae_jax.sampling.flow.sigmas`.

        Returns:
          One image per prompt, in order.

        Raises:
          ValueError: on a size, or latents, that the decoder cannot paint, a setting out of range, or a prompt of more
            tokens than the encoder was made for; before anything is painted.
        """
        settings = given(
            self.defaults.paint,
            steps=steps,
            guidance=guidance,
            size=size,
            negative_prompt=negative_prompt,
            conditioning=conditioning,
            sigma_compat=sigma_compat,
        )
        return _in_order(self.iter_paintings(prompts, settings, seed=seed, first=first, latents=latents))

    def reconstruct(
        self,
        images: Any,
        prompt: str | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | tuple[int, int] | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        first: int = 0,
        interface: str = "text",
        conditioning: str | None = None,
        sigma_compat: str | None = None,
    ) -> list[Reconstruction]:
        """Captions images, paints the captions, and scores how alike the two are.

        Args:
          images, prompt, max_new_tokens, temperature, top_p, top_k, repetition_penalty: see `caption`.
          steps, guidance, size, negative_prompt, conditioning, sigma_compat: see `generate`.
          seed, first: of captions and noise; see `caption`.
          interface: "text" passes the caption alone; "answer_hidden" the encoder's states while it wrote.
        """
        writing = given(
            self.defaults.caption,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
        )
        painting = given(
            self.defaults.paint,
            steps=steps,
            guidance=guidance,
            size=size,
            negative_prompt=negative_prompt,
            conditioning=conditioning,
            sigma_compat=sigma_compat,
        )
        return _in_order(
            self.iter_reconstructions(images, writing, painting, interface=interface, seed=seed, first=first)
        )

    def iter_captions(
        self, images: Any, settings: CaptionSettings | None = None, *, seed: int = 0, first: int = 0
    ) -> Iterator[tuple[int, str]]:
        """As `caption`, but yields (place, caption) as they are done, which is not in order."""
        settings = settings or self.defaults.caption
        for places, answers in self._answer(_opened(images), settings, ItemKeys(seed, first)):
            yield from zip(places, answers.texts, strict=True)

    def iter_answers(
        self,
        images: Any,
        questions: Sequence[str],
        settings: CaptionSettings | None = None,
        *,
        seed: int = 0,
        first: int = 0,
    ) -> Iterator[tuple[int, str]]:
        """Asks the encoder; yields (place, answer) as they are done, which is not in order.

        Args:
          images: one for each question, as for `caption`; None for questions about no image.
          questions: as many.
          settings: how tokens are drawn; its own question is not asked.
          seed, first: see `caption`.

        Raises:
          ImageError: if an image cannot be used, before anything is computed.
          ValueError: unless there are as many images as questions.
        """
        settings, texts = settings or self.defaults.caption, batching.as_list(questions)
        pictures = [None] * len(texts) if images is None else _opened(images)
        if len(pictures) != len(texts):
            raise ValueError(f"{len(pictures)} images and {len(texts)} questions, wanted as many")
        for places, answers in self._answer(pictures, settings, ItemKeys(seed, first), texts):
            yield from zip(places, answers.texts, strict=True)

    def iter_paintings(
        self,
        prompts: str | Sequence[str],
        settings: PaintSettings | None = None,
        *,
        seed: int = 0,
        first: int = 0,
        latents: np.ndarray | None = None,
    ) -> Iterator[tuple[int, Image.Image]]:
        """As `generate`, but yields (place, image) as they are done."""
        settings = settings or self.defaults.paint
        texts, keys = batching.as_list(prompts), ItemKeys(seed, first)
        shape = self.engine.latent_shape(settings)
        refuse_long(texts, self.prompts.config, lambda text: len(self.prompts.encode_text(text)))
        if latents is not None:
            latents = np.asarray(latents, np.float32)
            wanted = (len(texts), shape[2], shape[0], shape[1])
            if latents.shape != wanted:
                raise ValueError(f"latents are {latents.shape}, wanted {wanted} (images, channels, height, width)")
            latents = latents.transpose(0, 2, 3, 1)
        for places in batching.chunks(range(len(texts)), self._painting_rows(settings)):
            padded = _fill(places)
            conditions = self.engine.read([texts[i] for i in padded], settings)
            noise = self.engine.noise(keys(padded), shape) if latents is None else latents[padded]
            pixels = self.engine.paint(conditions, noise, settings)
            for row, i in enumerate(places):
                yield i, Image.fromarray(pixels[row])

    def iter_reconstructions(
        self,
        images: Any,
        writing: CaptionSettings | None = None,
        painting: PaintSettings | None = None,
        *,
        interface: str = "text",
        seed: int = 0,
        first: int = 0,
    ) -> Iterator[tuple[int, Reconstruction]]:
        """As `reconstruct`, but yields (place, reconstruction) as they are done, which is not in order."""
        if interface not in INTERFACES:
            raise ValueError(f"interface is {interface!r}, wanted one of {', '.join(INTERFACES)}")
        writing, painting = writing or self.defaults.caption, painting or self.defaults.paint
        shape, keys, pictures = self.engine.latent_shape(painting), ItemKeys(seed, first), _opened(images)
        for places, answers in self._answer(pictures, writing, keys):
            told = self.engine.reread(answers, painting) if interface == "answer_hidden" else None
            for rows in batching.chunks(range(len(places)), self._painting_rows(painting)):
                padded = _fill(rows)
                if told is None:
                    conditions = self.engine.read([answers.texts[row] for row in padded], painting)
                else:
                    conditions = self.engine.take(told, padded)
                noise = self.engine.noise(keys([places[row] for row in padded]), shape)
                pixels = self.engine.paint(conditions, noise, painting)
                yield from self._scored([(places[row], answers.texts[row]) for row in rows], pixels, pictures)

    def _scored(
        self, captions: list[tuple[int, str]], pixels: np.ndarray, pictures: list[Image.Image]
    ) -> Iterator[tuple[int, Reconstruction]]:
        """Puts the captions (place, caption) and paintings of a batch together and scores them."""
        painted = [Image.fromarray(pixels[row]) for row in range(len(captions))]
        originals = [pictures[i] for i, _ in captions]
        scores = {name: scorer.similarity(originals, painted) for name, scorer in self.scorers.items()}
        for row, (i, caption) in enumerate(captions):
            values = {name: float(score[row]) for name, score in scores.items()}
            yield i, Reconstruction(caption, painted[row], values)

    def _answer(
        self,
        pictures: Sequence[Image.Image | None],
        settings: CaptionSettings,
        keys: ItemKeys,
        questions: Sequence[str] | None = None,
    ) -> Iterator[tuple[list[int], Answers]]:
        """Writes captions or answers batch by batch, images of like size together; yields places and `Answers`."""
        engine = self.engine
        need = batching.caption_bytes(
            engine.encoder.config,
            self.prompts.vision_inputs,
            new_token_slots(settings),
            engine.runtime.dtype.itemsize,
        )
        copy = batching.decoding_copy_bytes(self.weights.encoder.params)
        order = sorted(range(len(pictures)), key=lambda i: pictures[i].width * pictures[i].height if pictures[i] else 0)
        for places in batching.chunks(order, batching.rows_within(self.memory - copy, need)):
            padded = _fill(places)
            asked = None if questions is None else [questions[i] for i in padded]
            yield places, engine.write([pictures[i] for i in padded], settings, keys(padded), len(places), asked)

    def _painting_rows(self, settings: PaintSettings) -> int:
        """How many images are painted at a time."""
        engine = self.engine
        flash = engine.runtime.attention != "xla" and jax.default_backend() != "cpu"
        shape, guided = engine.latent_shape(settings), settings.negative is not None
        need = batching.paint_bytes(engine.decoder.config, engine.vae.config, shape, guided, flash)
        return batching.rows_within(self.memory, need)


def refuse_long(texts: Sequence[str], encoder: Any, count_tokens: Callable[[str], int]) -> None:
    """Raises `ValueError` where a text is longer than the encoder was made for: painting it might take any memory.

    Args:
      texts: to be painted.
      encoder: its config.
      count_tokens: of a text; asked only where there may be too many.
    """
    most = encoder.text.max_positions
    for number, text in enumerate(texts, start=1):
        # No token is shorter than a byte.
        if len(text.encode("utf-8", "surrogatepass")) > most and (count := count_tokens(text)) > most:
            raise ValueError(f"prompt {number} has {count} tokens, wanted at most the encoder's {most}; shorten it")


def _look_for(root: Path, scorers: Iterable[str | os.PathLike], processor: str | os.PathLike | None) -> None:
    """Raises what loading would before weights are read: of what is not there, and of files that were cut off."""
    uae.look_for(root)
    if processor is None:
        prefix = f"{uae.LLM}/"
        names = [name.removeprefix(prefix) for name in uae.read_files(root) if name.startswith(prefix)]
        check_tokenizer(root / uae.LLM, names)
    else:
        folder = checkpoint.resolve(processor)
        check_tokenizer(folder, [file.name for file in folder.iterdir()])
    for scorer in scorers:
        pretrained.read_config(scorer)


def _opened(images: Any) -> list[Image.Image]:
    return [open_image(image) for image in batching.as_list(images)]


def _in_order(results: Iterator[tuple[int, Any]]) -> list[Any]:
    return [result for _, result in sorted(results, key=lambda pair: pair[0])]


def _fill(places: list[int]) -> list[int]:
    """Pads a batch to a bucket with copies of its last item."""
    return [*places, *places[-1:] * (bucket(len(places), 1) - len(places))]

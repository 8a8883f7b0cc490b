"""Stage `region_words`: teaches the encoder to see, from labels of an image's regions.

An encoder from nothing learns little from captions: hundreds of thousands of images pass before it tells shapes or
places apart. So each token of an image first learns which words name what it shows. Read by "vision", the tower alone
learns: its tokens are to point where these words' embeddings point, and to be no longer than a few layers of the
language model can change. Read by "language", the lower half of the language model learns, too, which names, at the
image's own tokens, what it makes of them: the tower knows relative places only, so where something stands is first
known there; and what the lower layers know of an image, the upper ones can put into a caption. `caption_sft` goes on
from the result.

A sample's caption is its labels, one for each merged token, row by row and with semicolons between: "red star;white;".

Letters: B images, M merged tokens, K words of a label, V vocabulary, H/W image height and width.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from uae_jax.data.prompts import CAPTION_QUESTION, Buckets
from uae_jax.data.records import Sample
from uae_jax.data.scenes.regions import SEPARATOR
from uae_jax.stages import images, models, questions, towers, uae_models
from uae_jax.stages.base import Aux, Parts, Stage
from uae_jax.stages.towers import TowerConfig
from uae_jax.stages.uae_models import UAEParts

Array = jax.Array
Tree = Any
SHARPNESS = 5.0  # logits per unit of length: a word that is there for certain (a logit of 10) takes a length of 2


@dataclasses.dataclass(frozen=True)
class RegionWordsSettings:
    """Settings of the stage.

    Attributes:
      model: "new:SIZE", or a UAE folder.
      read_by: "vision" or "language", see above.
      question: what the encoder is asked about the image; "" takes the model's own.
      max_words: tokens that a label may have.
      max_pixels: area that an image is scaled down to before the encoder reads it.
      dtype: of activations, "float32" or "bfloat16".
      save_dtype: of the weights in the result.
    """

    model: str = "new:tiny"
    read_by: Literal["vision", "language"] = "vision"
    question: str = ""
    max_words: int = 8
    max_pixels: int = 65_536
    dtype: str = "float32"
    save_dtype: Literal["float32", "bfloat16"] = "float32"


class RegionWords(Stage):
    """Cross-entropy of the words of each region's label; see the module.

    A batch holds the question about its images, see `questions.ask`, and "words" i32[B, M, K], -1 behind the last.
    """

    Settings = RegionWordsSettings
    separable = True

    def __init__(self, settings: RegionWordsSettings, seed: int = 0):
        super().__init__(settings, seed)
        if settings.max_words < 1:
            raise ValueError(f"max_words is {settings.max_words}, wanted at least 1")
        models.runtime(settings.dtype)
        self.parts = UAEParts(settings.model)
        uae_models.check_parts(self.parts)

    def look_for_models(self) -> None:
        uae_models.look_for(self.parts)

    def load(self, mesh: Mesh) -> Parts:
        settings = self.settings
        self.mesh = mesh
        weights = uae_models.open_uae(self.parts, self.seed, mesh)
        self.prompts = uae_models.prompt_builder(weights, max_pixels=settings.max_pixels, buckets=Buckets(patches=1))
        self.question = settings.question or uae_models.advice(weights, "caption", "prompt", CAPTION_QUESTION)
        frozen_parts = ("language/.*",) if settings.read_by == "vision" else ()
        self.tower, encoder, frozen = towers.start(
            weights.encoder,
            TowerConfig(frozen=frozen_parts),
            weights.encoder_lora,
            dtype=settings.dtype,
            seed=self.seed,
            mesh=mesh,
        )
        return Parts(encoder, frozen, params_axes=self.tower.axes)

    def collate(self, samples: Sequence[Sample]) -> Tree:
        """Packs a batch.

        Raises:
          ValueError: if a sample has not one label for each merged token; names it.
        """
        asked = questions.ask(self.prompts, self.question, images.stack_images(samples))
        merged = int((asked["asked/image_index"][0] >= 0).sum())
        return {**asked, "words": np.stack([self._words(sample, merged) for sample in samples])}

    def _words(self, sample: Sample, count: int) -> np.ndarray:
        labels = sample.caption.split(SEPARATOR)
        if len(labels) != count:
            raise ValueError(
                f"{sample.id}: {len(labels)} labels, wanted {count}, one for each token of an image of "
                f"{sample.image.shape[1]}x{sample.image.shape[0]} pixels"
            )
        words = np.full((count, self.settings.max_words), -1, np.int32)
        for row, label in zip(words, labels, strict=True):
            tokens = self.prompts.encode_text(f" {label.strip()}")[: len(row)]
            row[: len(tokens)] = tokens
        return words

    def loss(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Array, Aux]:
        module, variables = self.tower.module, self.tower.variables(params, frozen)
        prompts = questions.prompts_of(batch, self.prompts)
        features = module.apply(variables, prompts.images, method="encode_images")
        if self.settings.read_by == "vision":
            embedding = variables["params"]["language"]["embedding"].astype(jnp.float32)
            directions = embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
            logits = SHARPNESS * jnp.einsum("bmd,vd->bmv", features.astype(jnp.float32), directions)
        else:
            embedded = module.apply(variables, prompts.tokens, features, prompts.image_index, method="embed")
            _, sown = module.apply(
                variables, embedded, prompts.positions, method="hidden_states", mutable=["intermediates"]
            )
            layers = sown["intermediates"]["language"]["layers"]["hidden"][0]  # [layer, B, T, D]
            half = layers[self.tower.config.text.depth // 2 - 1]
            places = jnp.argsort(prompts.image_index < 0, axis=1, stable=True)[:, : features.shape[1]]
            logits = module.apply(variables, jnp.take_along_axis(half, places[..., None], axis=1), method="finish")
        loss, right = bag_of_words(logits, batch["words"])
        return loss.mean(), Aux({"accuracy": right.mean()}, per_example=loss)

    def save(self, params: Tree, state: Tree, frozen: Tree, folder: Path) -> None:
        encoder, adapter = self.tower.finished(params, frozen)
        changed = {"encoder": encoder, "encoder_lora": adapter}
        uae_models.save_uae(self.parts, self.seed, self.mesh, changed, folder, self.settings.save_dtype)


def bag_of_words(logits: Array, words: Array) -> tuple[Array, Array]:
    """Cross-entropy of words in no order.

    Args:
      logits: f32[B, M, V].
      words: i32[B, M, K], -1 where there is none.

    Returns:
      (the mean of -log p over the words of an image, f32[B], nats; the share of its words that rank above all words
      that are not of their label, f32[B]).
    """
    there = (words >= 0).astype(jnp.float32)
    index = jnp.maximum(words, 0)
    picked = jnp.take_along_axis(logits, index, axis=-1)
    surprise = jax.nn.logsumexp(logits, axis=-1, keepdims=True) - picked
    label = jax.nn.one_hot(words, logits.shape[-1]).max(-2)  # of -1: nothing
    best_other = jnp.where(label > 0, -jnp.inf, logits).max(-1, keepdims=True)
    count = jnp.maximum(there.sum((1, 2)), 1)
    return (surprise * there).sum((1, 2)) / count, ((picked > best_other) * there).sum((1, 2)) / count

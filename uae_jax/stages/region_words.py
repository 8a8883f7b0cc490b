"""Stage `region_words`: teaches the encoder's vision tower to see, from labels of an image's regions.

A vision tower from nothing learns little from captions: hundreds of thousands of images pass before it tells shapes
apart. So each of its tokens first learns which words name what it shows: it is to point where these words' embeddings
point, and to be no longer than a few layers of the language model can change, which is to add where the token stands.
The language model is left alone. `caption_sft` goes on from the result.

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

from uae_jax.data import device_patches
from uae_jax.data.prompts import Buckets
from uae_jax.data.records import Sample
from uae_jax.data.scenes.regions import SEPARATOR
from uae_jax.models.qwen2_5_vl.positions import ImagePatches
from uae_jax.stages import images, models, questions, towers, uae_models
from uae_jax.stages.base import Aux, Parts, Stage
from uae_jax.stages.questions import PLAN
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
      max_words: tokens that a label may have.
      max_pixels: area that an image is scaled down to before the encoder reads it.
      dtype: of activations, "float32" or "bfloat16".
      save_dtype: of the weights in the result.
    """

    model: str = "new:tiny"
    max_words: int = 8
    max_pixels: int = 65_536
    dtype: str = "float32"
    save_dtype: Literal["float32", "bfloat16"] = "float32"


class RegionWords(Stage):
    """Cross-entropy of the words of each region's label; see the module.

    A batch: "images" u8[B, H, W, 3], "words" i32[B, M, K] with -1 behind the last, and the plan of the patches.
    """

    Settings = RegionWordsSettings

    def __init__(self, settings: RegionWordsSettings, seed: int = 0):
        super().__init__(settings, seed)
        if settings.max_words < 1:
            raise ValueError(f"max_words is {settings.max_words}, wanted at least 1")
        models.runtime(settings.dtype)
        self.parts = UAEParts(settings.model)
        uae_models.check_parts(self.parts)

    def load(self, mesh: Mesh) -> Parts:
        settings = self.settings
        self.mesh = mesh
        weights = uae_models.open_uae(self.parts, self.seed, mesh)
        self.prompts = uae_models.prompt_builder(weights, max_pixels=settings.max_pixels, buckets=Buckets(patches=1))
        self.tower, encoder, frozen = towers.start(
            weights.encoder,
            TowerConfig(frozen=("language/.*",)),
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
        config = self.tower.config.vision
        pixels = device_patches.fitted(images.stack_images(samples), self.prompts.vision_inputs)
        grid = questions.grid_of(pixels, config.patch_size)
        plan = questions.planned(((grid,),) * len(samples), config)
        words = np.stack([self._words(sample, grid[1] * grid[2] // config.patches_per_token) for sample in samples])
        return {"images": pixels, "words": words, **{name: getattr(plan, name) for name in PLAN}}

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
        variables = self.tower.variables(params, frozen)
        patches = device_patches.patches_of(batch["images"], self.prompts.vision_inputs)
        seen = ImagePatches(patches, *(batch[name] for name in PLAN))
        features = self.tower.module.apply(variables, seen, method="encode_images").astype(jnp.float32)
        embedding = variables["params"]["language"]["embedding"].astype(jnp.float32)
        directions = embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
        logits = SHARPNESS * jnp.einsum("bmd,vd->bmv", features, directions)
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

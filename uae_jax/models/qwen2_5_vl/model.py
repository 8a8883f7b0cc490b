"""Qwen2.5-VL: reads images and text, writes text.

Host side, `positions` plans the integer arrays; here they meet the parameters. Dropout is not implemented: the
published models have `attention_dropout` 0.

Letters: B batch, T tokens, P patches, M merged tokens, D width, V vocabulary, S slots of the cache.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uae_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from uae_jax.models.qwen2_5_vl.language import KVCache, LanguageModel, Segments
from uae_jax.models.qwen2_5_vl.positions import ImagePatches
from uae_jax.models.qwen2_5_vl.vision import VisionTower
from uae_jax.models.runtime import Runtime
from uae_jax.parallel.sharding import LogicalAxes, constrain

Array = jax.Array

LOGICAL_AXES = LogicalAxes(
    (r"vision/patch_embed/kernel", (None, "embed")),
    (r"vision/layers/attn/qkv/kernel", ("embed", None, "heads")),
    (r"vision/layers/attn/qkv/bias", (None, "heads")),
    (r"vision/layers/attn/proj/kernel", ("heads", "embed")),
    (r"vision/layers/attn/proj/bias", (None,)),
    (r"vision/merger/up/kernel", ("embed", "mlp")),
    (r"vision/merger/up/bias", ("mlp",)),
    (r"vision/merger/down/kernel", ("mlp", "embed")),
    (r"vision/merger/down/bias", (None,)),
    (r"language/embedding", ("vocab", None)),
    (r"language/lm_head/kernel", ("embed", "vocab")),
    (r"language/layers/attn/q/kernel", ("embed", "heads")),
    (r"language/layers/attn/q/bias", ("heads",)),
    (r"language/layers/attn/[kv]/kernel", ("embed", "kv_heads")),
    (r"language/layers/attn/[kv]/bias", ("kv_heads",)),
    (r"language/layers/attn/o/kernel", ("heads", "embed")),
    (r"(vision|language)/layers/mlp/(gate|up)/kernel", ("embed", "mlp")),
    (r"(vision|language)/layers/mlp/(gate|up)/bias", ("mlp",)),
    (r"(vision|language)/layers/mlp/down/kernel", ("mlp", "embed")),
    (r"(vision|language)/layers/mlp/down/bias", (None,)),
    (r"(vision|language)/(.*/)?(\w+_)?norm/scale", (None,)),
)


class Qwen2_5_VL(nn.Module):
    """Vision tower and language model; the parts are reached through `apply(..., method=)`."""

    config: Qwen2_5_VLConfig
    runtime: Runtime = Runtime()

    def setup(self):
        cfg = self.config
        self.vision = VisionTower(cfg.vision, self.runtime)
        self.language = LanguageModel(cfg.text, cfg.tie_word_embeddings, self.runtime)

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        segment_ids: Segments = None,
        images: ImagePatches | None = None,
        image_index: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Scores every next token of whole sequences.

        Args:
          tokens: i32[B, T].
          positions: i32[3, B, T], see `positions.mrope_positions`.
          segment_ids: see `hidden_states`.
          images: the rows' images; None for text only.
          image_index: i32[B, T], see `positions.image_index`; wanted with images.

        Returns:
          f32[B, T, V] logits, and {"hidden": [B, T, D]}, the final hidden states that they are read from.
        """
        features = None if images is None else self.encode_images(images)
        embeddings = self.embed(tokens, features, image_index)
        hidden, _ = self.hidden_states(embeddings, positions, segment_ids)
        return self.logits(hidden), {"hidden": hidden}

    def encode_images(self, images: ImagePatches) -> Array:
        """Turns each row's patches into tokens [B, M, D]; those of padding hold finite noise that nobody reads."""
        return self.vision(images)

    def embed(self, tokens: Array, image_features: Array | None = None, image_index: Array | None = None) -> Array:
        """Looks tokens up and puts image tokens in the place of their placeholders.

        Args:
          tokens: i32[B, T].
          image_features: [B, M, D] or None.
          image_index: i32[B, T] index into M, -1 for text.

        Returns:
          [B, T, D].

        Raises:
          ValueError: if only one of features and index is given.
        """
        if (image_features is None) != (image_index is None):
            raise ValueError("image_features and image_index go together; got only one of them")
        x = self.language.embed(tokens)
        if image_features is None:
            return x
        placed = jnp.take_along_axis(image_features, jnp.maximum(image_index, 0)[:, :, None], axis=1)
        x = jnp.where(image_index[:, :, None] >= 0, placed.astype(x.dtype), x)
        return constrain(x, "batch", "length", None)

    def hidden_states(
        self,
        embeddings: Array,
        positions: Array,
        segment_ids: Segments = None,
        cache: KVCache | None = None,
        cache_index: Array | int = 0,
        mask: Array | None = None,
    ) -> tuple[Array, KVCache | None]:
        """Runs the language model up to and including its final norm.

        Args:
          embeddings: [B, T, D].
          positions: i32[3, B, T].
          segment_ids: i32[B, T], tokens see earlier ones of their own segment; padding is one of its own. Or a pair
            (of queries, of keys): with (1 everywhere, 1 at real tokens and 0 at padding), padding behind a row sees
            the row, as in transformers, for whoever reads hidden states there.
          cache: keys and values so far; the new tokens' are written at slot `cache_index`, which must leave room.
          cache_index: slot of the first new token, the same for all rows.
          mask: bool[B, 1, T, S] over the cache's slots, see `language.cache_mask`; replaces causal order and
            segments. None, with a cache: the cache is filled, and the tokens see each other only (prefill).

        Returns:
          [B, T, D], and the updated cache or None.
        """
        return self.language(embeddings, positions, segment_ids, cache, cache_index, mask)

    def logits(self, hidden: Array) -> Array:
        """Scores the vocabulary: [B, T, D] -> f32[B, T, V], products summed in float32."""
        return self.language.logits(hidden)

    def finish(self, x: Array) -> Array:
        """The final norm and the head, for who runs the layers one by one: [B, T, D] -> f32[B, T, V]."""
        return self.language.logits(self.language.norm(x))


def example_inputs(config: Qwen2_5_VLConfig) -> tuple:
    """The smallest inputs that `init` accepts: one token, one merged patch square."""

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, "int32")

    vision = config.vision
    count = vision.patches_per_token
    images = ImagePatches(
        patches=jax.ShapeDtypeStruct((1, count, vision.patch_width), "float32"),
        position=ints(1, count, 2),
        segment=ints(1, count),
        window=ints(1, 1, vision.window_patches),
        slot=ints(1, count),
    )
    return ints(1, 1), ints(3, 1, 1), ints(1, 1), images, ints(1, 1)

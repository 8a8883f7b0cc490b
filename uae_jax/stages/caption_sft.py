"""Stage `caption_sft`: teaches the encoder to caption images, by next-token cross-entropy.

A row is a question about an image and its caption as the answer; only the answer counts. Some rows, if asked, are a
caption without an image under the role `generate`, as plain language modelling: that is how the decoder's text is read,
and an encoder that only ever saw text behind images would make little of it.

A decoder is told what the final states hold, and next-token prediction asks them to hold what comes next: a small
encoder has no room to spare, and forgets a word as soon as nothing that follows depends on it. With `keep_words` each
state must also name the token it stands at, read by the same head with its features in reverse order.

Letters: B samples, T tokens, P patches, H/W image height and width.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from uae_jax import batching
from uae_jax.averages import Mean, divided
from uae_jax.data import device_patches, token_rows
from uae_jax.data.prompts import CAPTION_QUESTION, Buckets
from uae_jax.data.records import Sample
from uae_jax.data.token_rows import RowBuilder
from uae_jax.models.qwen2_5_vl.positions import ImagePatches
from uae_jax.parallel import global_arrays
from uae_jax.sampling import text
from uae_jax.sampling.scoring import token_scores
from uae_jax.sampling.tokens import token_sampling
from uae_jax.stages import images, models, questions, towers, uae_models
from uae_jax.stages.base import Aux, Parts, Picture, Stage
from uae_jax.stages.questions import PLAN
from uae_jax.stages.towers import TowerConfig
from uae_jax.stages.uae_models import UAEParts

Array = jax.Array
Tree = Any


@dataclasses.dataclass(frozen=True)
class CaptionSFTSettings:
    """Settings of the stage.

    Attributes:
      model: "new:SIZE", or a UAE folder.
      encoder: what of the encoder is trained; freeze a part by path: `frozen=("vision/.*",)` or `("language/.*",)`.
      question: what the encoder is asked; "" takes the model's own.
      max_tokens: of a caption; longer ones are cut, and counted.
      text_only: fraction of the samples that are read without their image, see above.
      keep_words: weight of the cross-entropy of each state's own token, see above; 0 does not compute it.
      token_bucket: the smallest length that batches are padded to; lengths are it times 2^k, or one and a half of that.
      max_pixels: area that an image is scaled down to before the encoder reads it.
      logit_chunk: how many positions' logits exist at a time; 0 for all.
      pictures: held-out images that are captioned after an evaluation.
      dtype: of activations and of what is frozen, "float32" or "bfloat16".
      save_dtype: of the weights in the result.
    """

    model: str = "new:tiny"
    encoder: TowerConfig = TowerConfig()
    question: str = ""
    max_tokens: int = 512
    text_only: float = 0.0
    keep_words: float = 0.0
    token_bucket: int = 32
    max_pixels: int = 65_536
    logit_chunk: int = 512
    pictures: int = 8
    dtype: str = "float32"
    save_dtype: Literal["float32", "bfloat16"] = "float32"


class CaptionSFT(Stage):
    """Next-token cross-entropy of captions; see the module.

    A batch: "tokens" i32[B, T], "valid" and "scored" bool[B, T], "positions" i32[B, 3, T], "image_index" i32[B, T],
    "cut" bool[B], "images" u8[B, H, W, 3], and the plan of its patches, see `ImagePatches`.
    """

    Settings = CaptionSFTSettings
    separable = True

    def __init__(self, settings: CaptionSFTSettings, seed: int = 0):
        super().__init__(settings, seed)
        if settings.max_tokens < 1:
            raise ValueError(f"max_tokens is {settings.max_tokens}, wanted at least 1")
        if not 0 <= settings.text_only < 1:
            raise ValueError(f"text_only is {settings.text_only}, wanted 0 or more and less than 1")
        if settings.keep_words < 0:
            raise ValueError(f"keep_words is {settings.keep_words}, wanted 0 or more")
        if settings.encoder.mode == "frozen":
            raise ValueError("encoder.mode is 'frozen', which leaves nothing to train; wanted 'full' or 'lora'")
        models.runtime(settings.dtype)
        self.parts = UAEParts(settings.model)
        uae_models.check_parts(self.parts)

    def look_for_models(self) -> None:
        uae_models.look_for(self.parts)

    def load(self, mesh: Mesh) -> Parts:
        settings = self.settings
        self.mesh = mesh
        weights = uae_models.open_uae(self.parts, self.seed, mesh)
        # Images of one batch are of one size, so that its patches need no room to spare.
        buckets = Buckets(settings.token_bucket, patches=1)
        self.prompts = uae_models.prompt_builder(weights, max_pixels=settings.max_pixels, buckets=buckets)
        self.rows = RowBuilder(self.prompts, settings.max_tokens)
        self.question = settings.question or uae_models.advice(weights, "caption", "prompt", CAPTION_QUESTION)
        self.tower, trainable, frozen = towers.start(
            weights.encoder, settings.encoder, weights.encoder_lora, dtype=settings.dtype, seed=self.seed, mesh=mesh
        )
        return Parts(trainable, frozen, params_axes=self.tower.axes)

    def collate(self, samples: Sequence[Sample]) -> Tree:
        config = self.tower.config
        pixels = device_patches.fitted(images.stack_images(samples), self.prompts.vision_inputs)
        grid = questions.grid_of(pixels, config.vision.patch_size)
        merged = grid[1] * grid[2] // config.vision.patches_per_token
        rows, grids = [], []
        for sample, alone in zip(samples, self._text_only(len(samples)), strict=True):
            rows.append(
                self.rows.painted(sample.caption) if alone else self.rows.answer(self.question, sample.caption, merged)
            )
            grids.append(() if alone else (grid,))
        # All processes of a run must make one shape, and none sees the others' captions.
        room = self.rows.longest(self.question, merged) if jax.process_count() > 1 else 0
        packed = token_rows.pack(self.prompts, rows, grids, self.settings.token_bucket, room)
        plan = questions.planned(tuple(grids), config.vision)
        return {**packed, "images": pixels, **{name: getattr(plan, name) for name in PLAN}}

    def _text_only(self, count: int) -> list[bool]:
        """Which samples of a batch go without their image: evenly spread, so the same number in every batch."""
        share = self.settings.text_only
        return [int((i + 1) * share + 1e-9) > int(i * share + 1e-9) for i in range(count)]

    def prepare(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Tree, dict]:
        """Weighs tokens by the whole batch, so that micro-batches add up to its mean.

        Raises:
          ValueError: if there are too few rows on a process for `text_only`.
        """
        share, rows = self.settings.text_only, len(batch["scored"]) // jax.process_count()
        if share and not any(self._text_only(rows)):
            raise ValueError(
                f"text_only is {share:g} of {rows} rows, which is none; wanted at least {math.ceil(1 / share - 1e-9)} "
                "rows of a batch on each process, a larger share, or 0"
            )
        scored = batch["scored"].astype(jnp.float32)
        count = scored.sum()
        counts = {"tokens": count, "captions_cut": batch["cut"].sum().astype(jnp.float32)}
        return {**batch, "weight": scored * (scored.shape[0] / jnp.maximum(count, 1))}, counts

    def loss(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Array, Aux]:
        module, variables = self.tower.module, self.tower.variables(params, frozen)
        patches = device_patches.patches_of(batch["images"], self.prompts.vision_inputs)
        features = module.apply(
            variables, ImagePatches(patches, *(batch[name] for name in PLAN)), method="encode_images"
        )
        embedded = module.apply(variables, batch["tokens"], features, batch["image_index"], method="embed")
        hidden, _ = module.apply(
            variables,
            embedded,
            batch["positions"].swapaxes(0, 1),
            batch["valid"].astype(jnp.int32),
            method="hidden_states",
        )
        # State t scores token t + 1; the last one has nothing to score.
        targets, weight, scored = (_next(batch[name]) for name in ("tokens", "weight", "scored"))
        logprob, best, _ = token_scores(module, variables, hidden, targets, self.settings.logit_chunk)
        loss = -(weight * logprob).sum() / weight.shape[0]
        metrics = self._metrics(batch, scored, logprob, best)
        if self.settings.keep_words:
            own, kept, _ = token_scores(
                module, variables, hidden[..., ::-1], batch["tokens"], self.settings.logit_chunk
            )
            loss -= self.settings.keep_words * (batch["weight"] * own).sum() / weight.shape[0]
            metrics["words_kept"] = Mean.of(kept, batch["scored"])
        return loss, Aux(metrics, per_example=_row_means(-logprob, scored))

    def _metrics(self, batch: Tree, scored: Array, logprob: Array, best: Array) -> dict[str, Mean]:
        with_image = (batch["segment"][:, :1] > 0) & scored
        metrics = {
            "accuracy": Mean.of(best, scored),
            "caption_loss": Mean.of(-logprob, with_image),
            "caption_accuracy": Mean.of(best, with_image),
        }
        if self.settings.text_only:
            metrics["text_loss"] = Mean.of(-logprob, scored & ~with_image)
        return metrics

    def evaluate(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> dict[str, Array]:
        batch, counts = self.prepare(params, state, frozen, batch, key)
        value, aux = self.loss(params, state, frozen, batch, key)
        return {"loss": value, **divided(aux.metrics), **counts}

    def pictures(
        self, params: Tree, state: Tree, frozen: Tree, batch: Tree, samples: Sequence[Sample]
    ) -> list[Picture]:
        shown = samples[: self.settings.pictures]
        if not shown:
            return []
        written = self.write(params, frozen, [sample.image for sample in shown])
        texts = [f"written: {own}\nwanted: {sample.caption}" for own, sample in zip(written, shown, strict=True)]
        return [Picture("captions", ("image",), [[sample.image] for sample in shown], texts)]

    def write(self, params: Tree, frozen: Tree, pixels: Sequence[np.ndarray]) -> list[str]:
        """Captions u8[H, W, 3] images greedily."""
        asked = self.prompts.ask([[Image.fromarray(image)] for image in pixels], [self.question] * len(pixels))
        placed = jax.tree.map(lambda leaf: batching.place(leaf, self.mesh), asked.replace(positions=None))
        placed = placed.replace(positions=batching.place(asked.positions, self.mesh, axis=1))
        with jax.set_mesh(self.mesh):
            keys = jax.random.split(jax.random.key(0), len(pixels))
            answers = self._write(params, frozen, placed, keys)
        tokens, lengths = global_arrays.to_host((answers.tokens, answers.lengths))
        return [self.prompts.decode(row[:length]) for row, length in zip(tokens, lengths, strict=True)]

    @functools.cached_property
    def _write(self) -> Any:
        def run(params: Tree, frozen: Tree, prompts: Any, keys: Array) -> text.Generation:
            return text.generate(
                self.tower.module,
                self.tower.variables(params, frozen),
                prompts,
                keys,
                token_sampling(0.0),
                stop_ids=self.prompts.stop_ids,
                pad_id=self.prompts.pad_id,
                max_new_tokens=self.settings.max_tokens + 1,
            )

        return jax.jit(run)

    def save(self, params: Tree, state: Tree, frozen: Tree, folder: Path) -> None:
        encoder, adapter = self.tower.finished(params, frozen)
        changed = {"encoder": encoder, "encoder_lora": adapter}
        uae_models.save_uae(self.parts, self.seed, self.mesh, changed, folder, self.settings.save_dtype)


def _next(x: Array) -> Array:
    """[B, T] -> [B, T]: at t what stands at t + 1, zero at the end."""
    return jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], axis=1)


def _row_means(value: Array, where: Array) -> Array:
    where = where.astype(jnp.float32)
    return (value * where).sum(axis=1) / jnp.maximum(where.sum(axis=1), 1)

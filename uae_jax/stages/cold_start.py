"""Stage `cold_start`: the semantic reconstruction loss, differentiated through the whole loop.

A caption's hidden states are projected, painted by a short sampler, decoded, and looked at by the judges; 1 - reward
flows back through all of it into the adapters of encoder and decoder and into the projector. Words themselves are not
differentiated: they are given, by the data or by the encoder's own greedy captions.

Letters: B images, N tokens of a caption, T tokens of a text, D encoder width, h/w latent height and width, Z latent
channels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.data.records import Sample
from uae_jax.sampling import flow, painting
from uae_jax.sampling.text import Generation
from uae_jax.stages import draws
from uae_jax.stages.base import Aux
from uae_jax.stages.loop_stage import LANGUAGE_LORA, LORA, Interface, LoopSettings, LoopStage, named
from uae_jax.stages.towers import TowerConfig

Array = jax.Array
Tree = Any


@dataclasses.dataclass(frozen=True)
class ColdStartSettings(LoopSettings):
    """Settings of the stage, beside those of the loop.

    Attributes:
      captions: "data", those of the samples, or "own", which the encoder writes greedily in every step.
      gradient_steps: the last so many denoising steps carry the gradient; 0: all of them.
    """

    encoder: TowerConfig = LANGUAGE_LORA
    projector: TowerConfig = TowerConfig(mode="full")
    decoder: TowerConfig = LORA
    interface: Interface = "answer_hidden"
    captions: Literal["data", "own"] = "data"
    gradient_steps: int = 0


class ColdStart(LoopStage):
    """See the module. Beside the question a batch holds "written" i32[B, N], "lengths" i32[B], "stopped" bool[B], the
    captions as the encoder would have written them."""

    Settings = ColdStartSettings

    def __init__(self, settings: ColdStartSettings, seed: int = 0):
        super().__init__(settings, seed)
        steps = settings.paint.steps
        if not 0 <= settings.gradient_steps <= steps:
            raise ValueError(f"gradient_steps is {settings.gradient_steps}, wanted 0 (all) to {steps}")
        if settings.text.conditioning == "base" and settings.encoder.mode != "frozen":
            raise ValueError(
                f"text.conditioning is 'base' with encoder.mode {settings.encoder.mode!r}: read without its adapter, "
                "the encoder has no gradient; wanted 'current', or mode 'frozen'"
            )
        self.needs_captions = settings.captions == "data"

    def collate(self, samples: Sequence[Sample]) -> Tree:
        batch = super().collate(samples)
        if not self.needs_captions:
            return batch
        room, uae = self.settings.text.max_tokens + 1, self.uae
        tokens = np.full((len(samples), room), uae.prompts.pad_id, np.int32)
        lengths, stopped = np.zeros(len(samples), np.int32), np.zeros(len(samples), bool)
        for i, sample in enumerate(samples):
            row = uae.rows.answer("", sample.caption, 0)
            said = row.tokens[row.scored[0] : row.scored[1]]
            tokens[i, : len(said)], lengths[i], stopped[i] = said, len(said), not row.cut
        return {**batch, "written": tokens, "lengths": lengths, "stopped": stopped}

    def prepare(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Tree, dict]:
        if not self.needs_captions:
            keys = jax.random.split(key, batch["images"].shape[0])
            variables = self.uae.variables("encoder", *self.acting(params, frozen))
            written = self.write(variables, self.prompts(batch), keys, 0.0)
            own = {"written": written.tokens, "lengths": written.lengths, "stopped": written.stopped}
            batch = {**batch, **own}
        metrics = {"caption_tokens": batch["lengths"].mean(dtype=jnp.float32)}
        batch = {**batch, "draw": draws.of_rows(jax.random.fold_in(key, 1), batch["images"].shape[0])}
        return batch, metrics | {"truncated": (~batch["stopped"]).mean(dtype=jnp.float32)}

    def loss(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Array, Aux]:
        prompts = self.prompts(batch)
        zeros = jnp.zeros(batch["written"].shape, jnp.float32)
        written = Generation(batch["written"], batch["lengths"], zeros, batch["stopped"])
        hidden, lengths = self.tell(params, frozen, prompts, written)
        noise = flow.initial_noise(draws.keys(batch["draw"], 1)[0], self.uae.latent_shape(batch["images"]))
        painted = self._painted(params, frozen, hidden, lengths, noise)
        reward = self.reward(frozen, batch["images"], painted)
        loss = 1 - reward.total
        metrics = {"reward": reward.total.mean(), **self.judges.metrics(reward.parts)}
        fine = jnp.isfinite(reward.total)
        return loss.mean(), Aux(jax.lax.stop_gradient(metrics), per_example=named(loss, fine))

    def _painted(self, params: Tree, frozen: Tree, hidden: Array, lengths: Array, noise: Array) -> Array:
        """Paints with a gradient through the last steps; every step, and the VAE, is computed again on the way back."""
        settings = self.settings
        schedule = self.schedule(settings.paint.steps)
        conditions = self.uae.conditions(params, frozen, hidden, lengths, settings.paint.guided)
        variables = self.uae.variables("decoder", params, frozen)
        velocity = self.uae.velocity(variables, frozen, schedule, conditions, settings.paint.guidance, cut=True)
        carrying = settings.gradient_steps or settings.paint.steps
        begin = settings.paint.steps - carrying

        def step(x: Array, i: Array) -> tuple[Array, None]:
            return flow.transition(schedule, i, x, velocity(x, i))[0], None

        x, _ = jax.lax.scan(step, noise, jnp.arange(begin))
        carried = jax.checkpoint(step, policy=painting.keep_velocities)
        x, _ = jax.lax.scan(carried, jax.lax.stop_gradient(x), jnp.arange(begin, settings.paint.steps))
        return painting.to_unit(jax.checkpoint(lambda latents: self.uae.decode(frozen, latents))(x))

"""Stage `pretrain`: teaches projector and decoder to paint long captions, by flow matching. The paper's stage one.

A caption is read under the role `generate` by the encoder, frozen as a rule; its hidden states go through the projector
into the decoder, which is to undo noise on the latents of the caption's image. Some captions are dropped for the
negative prompt, the one that inference moves away from, so that guidance has its other branch.

Letters: B samples, H/W image height and width, h/w latent height and width, Z latent channels, T tokens, D width of the
encoder, N tokens of the negative prompt.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from uae_jax import batching
from uae_jax.data.config import DataConfig
from uae_jax.data.records import Sample
from uae_jax.models.autoencoder_kl import Posterior, normalise_latents
from uae_jax.parallel import global_arrays
from uae_jax.sampling import flow, painting
from uae_jax.sampling.conditioning import Conditioning
from uae_jax.sampling.flow import Schedule
from uae_jax.stages import draws, encoded, flow_matching, images, painted_text, uae_models
from uae_jax.stages.base import Aux, Parts, Picture, Stage
from uae_jax.stages.pretrain_settings import CONTEXT, LATENTS, PretrainSettings, check
from uae_jax.stages.uae_models import UAEParts
from uae_jax.stages.uae_towers import NAMES, TextSettings, UAETowers

Array = jax.Array
Tree = Any


class Pretrain(Stage):
    """Flow matching; see the module.

    A batch holds "images" u8[B, H, W, 3], or "latents" [B, h, w, Z or 2 Z] (means, or means and logarithms of
    variances, of the VAE's posterior); and what `painted_text.tokens_of` or `painted_text.states_of` packs.
    """

    Settings = PretrainSettings
    separable = True

    def __init__(self, settings: PretrainSettings, seed: int = 0):
        super().__init__(settings, seed)
        check(settings)
        self.needs_captions = not settings.precomputed
        self.parts = UAEParts(settings.model, settings.encoder_from, settings.decoder_from, settings.vae_from)
        uae_models.check_parts(self.parts)
        self.encoded: dict[Path, dict[str, str]] = {}

    def look_for_models(self) -> None:
        uae_models.look_for(self.parts)

    def look_at_data(self, data: Sequence[DataConfig]) -> None:
        self.encoded = encoded.recorded(data)

    def load(self, mesh: Mesh) -> Parts:
        settings = self.settings
        self.mesh = mesh
        weights = uae_models.open_uae(self.parts, self.seed, mesh)
        encoded.check(self.encoded, weights)
        configs = {name: getattr(settings, name) for name in NAMES}
        text = TextSettings(settings.negative, max_tokens=settings.max_tokens, token_bucket=settings.token_bucket)
        self.uae, params, frozen = UAETowers.start(weights, configs, text, mesh, dtype=settings.dtype, seed=self.seed)
        self.prompts = self.uae.prompts
        if settings.precomputed:
            frozen["vae"] = {"decoder": frozen["vae"]["decoder"], **_without(frozen["vae"], ("encoder", "decoder"))}
            del frozen["encoder"]
        return Parts(params, frozen, params_axes=self.uae.axes)

    @property
    def trains_encoder(self) -> bool:
        return self.settings.encoder.mode != "frozen"

    def collate(self, samples: Sequence[Sample]) -> Tree:
        return {**self._pixels(samples), **self._texts(samples)}

    def _pixels(self, samples: Sequence[Sample]) -> Tree:
        if all(LATENTS in sample.arrays for sample in samples):
            return {"latents": np.stack([sample.arrays[LATENTS] for sample in samples])}
        self._demand_arrays(samples, LATENTS)
        return {"images": images.stack_images(samples)}

    def _texts(self, samples: Sequence[Sample]) -> Tree:
        contexts = [sample.arrays.get(f"{CONTEXT}:{sample.field}", sample.arrays.get(CONTEXT)) for sample in samples]
        least = self.settings.token_bucket
        if self.trains_encoder or any(context is None for context in contexts):
            self._demand_arrays(samples, CONTEXT)
            captions = [sample.caption for sample in samples]
            return painted_text.tokens_of(self.prompts, self.uae.rows, captions, self.uae.negative_length, least)
        longest = max(self.uae.rows.longest(), self.uae.negative_length)
        packed = painted_text.states_of(contexts, least, longest)
        if packed["lengths"].min() < self.uae.negative_length:
            short = samples[int(packed["lengths"].argmin())]
            raise ValueError(
                f"{short.id}: {packed['lengths'].min()} hidden states, wanted at least {self.uae.negative_length}, the "
                f"length of the negative prompt; compute them with that prompt"
            )
        return packed

    def _demand_arrays(self, samples: Sequence[Sample], name: str) -> None:
        if self.settings.precomputed:
            without = next(
                (s.id for s in samples if not any(key.split(":")[0] == name for key in s.arrays)), samples[0].id
            )
            raise ValueError(
                f"{without}: no array {name!r}, but settings.precomputed is true; unset it, or encode first"
            )

    def prepare(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Tree, dict]:
        metrics = {"captions_cut": batch["cut"].sum().astype(jnp.float32)} if "cut" in batch else {}
        return {**batch, "draw": draws.of_rows(key, batch["lengths"].shape[0])}, metrics

    def loss(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Array, Aux]:
        settings = self.settings
        latent_keys, noise_keys, sigma_keys, drop_keys = draws.keys(batch["draw"], 4)
        x0 = self._latents(frozen, batch, latent_keys)
        eps = flow.initial_noise(noise_keys, x0.shape[1:])
        shift = self._shift(x0.shape)
        sigma = flow_matching.draw_sigmas(sigma_keys, settings.logit_mean, settings.logit_std, shift)
        dropped = jax.vmap(jax.random.uniform)(drop_keys) < settings.drop
        told = self.conditions(params, frozen, batch, dropped)
        error = self.error(params, frozen, told, x0, eps, sigma)
        weighted = flow_matching.loss_weight(sigma, settings.weighting) * error
        metrics = {"mse": error.mean(), "dropped": dropped.astype(jnp.float32).mean(), "sigma": sigma.mean()}
        return weighted.mean(), Aux(metrics, per_example=weighted)

    def conditions(self, params: Tree, frozen: Tree, batch: Tree, dropped: Array | None = None) -> Conditioning:
        """What the decoder is told of each caption; of the negative prompt where bool[B] `dropped` says so."""
        hidden = batch["context"] if "context" in batch else self.uae.read(params, frozen, batch)
        hidden = hidden.astype(self.settings.dtype)
        if dropped is not None:
            negative = self.uae.negative(params, frozen, hidden.shape[1], hidden.dtype)
            hidden = jnp.where(dropped[:, None, None], negative, hidden)
        return self.uae.project(params, frozen, hidden, batch["lengths"])

    def error(self, params: Tree, frozen: Tree, told: Conditioning, x0: Array, eps: Array, sigma: Array) -> Array:
        """f32[B], the decoder's mean squared error at each sample's noise level.

        Args:
          told: B rows.
          x0, eps: f32[B, h, w, Z], latents and noise.
          sigma: f32[B].
        """
        velocity = self.uae.towers["decoder"].module.apply(
            self.uae.variables("decoder", params, frozen),
            flow_matching.noised(x0, eps, sigma),
            sigma * flow.TRAIN_STEPS,
            told.context,
            jnp.broadcast_to(frozen["pooled"], (x0.shape[0], *frozen["pooled"].shape)),
            told.lengths,
        )
        return flow_matching.squared_error(velocity, x0, eps)

    def _latents(self, frozen: Tree, batch: Tree, keys: Array | None) -> Array:
        """Normalised latents f32[B, h, w, Z] of a batch; without keys, one for each, the posterior's mean."""
        config = self.uae.vae_config
        if "images" in batch:
            posterior = self.uae.vae.apply({"params": frozen["vae"]}, images.to_pm1(batch["images"]), method="encode")
        else:
            stored = batch["latents"].astype(jnp.float32)
            if stored.shape[-1] == config.latent_channels:  # means only
                return normalise_latents(stored, config)
            posterior = Posterior(*jnp.split(stored, 2, axis=-1))
        latents = posterior.mode()
        if self.settings.posterior == "sample" and keys is not None:
            latents = posterior.shifted_by(flow.initial_noise(keys, latents.shape[1:]))
        return normalise_latents(latents, config)

    def _shift(self, latents: tuple[int, ...]) -> float:
        """The shift of noise levels for [B, h, w, Z]."""
        shift = self.settings.shift or self.uae.scheduler_shift
        if not self.settings.shift_side:
            return shift
        height, width = (side * self.uae.vae_config.downsampling for side in latents[1:3])
        return flow_matching.shift_of_size(shift, self.settings.shift_side, height, width)

    def evaluate(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> dict[str, Array]:
        """The loss, and the error at fixed noise levels with fixed noise, no caption dropped: little scatter."""
        batch, _ = self.prepare(params, state, frozen, batch, key)
        value, aux = self.loss(params, state, frozen, batch, key)
        x0 = self._latents(frozen, batch, None)
        eps = jax.random.normal(jax.random.fold_in(key, 1), x0.shape, jnp.float32)
        told = self.conditions(params, frozen, batch)

        def at(level: Array) -> Array:
            return self.error(params, frozen, told, x0, eps, jnp.full(x0.shape[:1], level)).mean()

        levels = self.settings.evaluation_sigmas
        errors = jax.lax.map(at, jnp.asarray(levels, jnp.float32))
        by_level = {f"mse_at_{level:g}": error for level, error in zip(levels, errors, strict=True)}
        return {"loss": value, "mse": errors.mean(), **by_level, "dropped": aux.metrics["dropped"]}

    def pictures(
        self, params: Tree, state: Tree, frozen: Tree, batch: Tree, samples: Sequence[Sample]
    ) -> list[Picture]:
        shown = samples[: self.settings.pictures]
        if not shown:
            return []
        placed = jax.tree.map(lambda leaf: batching.place(leaf, self.mesh), self.collate(shown))
        with jax.set_mesh(self.mesh):
            schedule = self.uae.schedule(self.settings.paint_steps)
            keys = jax.random.split(jax.random.key(0), len(shown))
            painted, originals = self._paint(params, frozen, placed, schedule, keys)
        painted, originals = global_arrays.to_host((painted, originals))
        originals = [known if s.image is None else s.image for known, s in zip(originals, shown, strict=True)]
        rows = [list(row) for row in zip(originals, painted, strict=True)]
        return [Picture("paintings", ("original", "painted"), rows, [sample.caption or "" for sample in shown])]

    @functools.cached_property
    def _paint(self) -> Any:
        settings = self.settings

        def run(params: Tree, frozen: Tree, batch: Tree, schedule: Schedule, keys: Array) -> tuple[Array, Array]:
            """u8[B, H, W, 3] paintings, and what the VAE makes of the latents where they came without an image."""
            told, away = self.conditions(params, frozen, batch), None
            if settings.guidance > 1:
                away = self.conditions(params, frozen, batch, jnp.ones(batch["lengths"].shape, bool))
            x0 = self._latents(frozen, batch, None)
            painted = painting.paint(
                self.uae.towers["decoder"].module,
                self.uae.variables("decoder", params, frozen),
                self.uae.vae,
                frozen["vae"],
                schedule,
                frozen["pooled"],
                told,
                away,
                settings.guidance,
                flow.initial_noise(keys, x0.shape[1:]),
            )
            known = batch["images"] if "images" in batch else painting.to_uint8(self.uae.decode(frozen, x0))
            return painting.to_uint8(painted), known

        return jax.jit(run)

    def save(self, params: Tree, state: Tree, frozen: Tree, folder: Path) -> None:
        changed = self.uae.finished(params, frozen)
        uae_models.save_uae(self.parts, self.seed, self.mesh, changed, folder, self.settings.save_dtype)


def _without(tree: dict[str, Tree], names: Sequence[str]) -> dict[str, Tree]:
    return {name: value for name, value in tree.items() if name not in names}

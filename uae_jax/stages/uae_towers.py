"""The towers of a UAE model in a stage, its VAE, and what the decoder is told: of captions and of the negative prompt.

Shared by every stage that paints. Holds no arrays: parameters come in as `params`, which are trained, and `frozen`.

Letters: B rows, T tokens, D encoder width, E conditioning, h/w latent height and width, Z latent channels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uae_jax.data.prompts import Buckets
from uae_jax.data.token_rows import RowBuilder
from uae_jax.engine import NEGATIVE_PROMPT
from uae_jax.models import sd3
from uae_jax.models.autoencoder_kl import normalise_latents
from uae_jax.models.runtime import Runtime
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import use_mesh
from uae_jax.sampling import flow, painting
from uae_jax.sampling.conditioning import Conditioning
from uae_jax.sampling.flow import Schedule
from uae_jax.stages import images, painted_text, towers, uae_models
from uae_jax.stages.towers import Tower, TowerConfig
from uae_jax.weights.uae import UAEWeights, scheduler_shift

Array = jax.Array
Tree = Any
NAMES = ("encoder", "projector", "decoder")
Reader = Literal["current", "base"]


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How captions become conditioning.

    Attributes:
      negative: the negative prompt; None takes the model's own, or else the published one.
      conditioning: the encoder reads captions with its adapter ("current") or without ("base").
      max_tokens: of a caption; longer ones are cut, and counted.
      token_bucket: the smallest length that texts are padded to; lengths are it times 2^k, or one and a half of that.
      max_pixels: area that an image is scaled down to before the encoder reads it; None leaves the model's limit.
    """

    negative: str | None = None
    conditioning: Reader = "current"
    max_tokens: int = 512
    token_bucket: int = 32
    max_pixels: int | None = None


class UAETowers:
    """See the module; made by `start`."""

    def __init__(self, weights: UAEWeights, text: TextSettings, mesh: Mesh):
        """Keeps what of a model is no array.

        Args:
          weights: of the model.
          text: how captions are read.
          mesh: where everything is.
        """
        self.text, self.mesh = text, mesh
        buckets = Buckets(text.token_bucket, patches=1)  # images of a batch are of one size: no room to spare
        self.prompts = uae_models.prompt_builder(weights, max_pixels=text.max_pixels, buckets=buckets)
        self.rows = RowBuilder(self.prompts, text.max_tokens)
        self.scheduler_shift = scheduler_shift(weights)
        self.vae_config = weights.vae.config
        self.vae = weights.vae.architecture.module(weights.vae.config, Runtime())
        negative = text.negative
        if negative is None:
            negative = uae_models.advice(weights, "paint", "negative_prompt", NEGATIVE_PROMPT)
        self._negative_tokens = painted_text.negative_tokens(self.prompts, negative)
        self.negative_length = self._negative_tokens["tokens"].shape[1] - 1
        self.towers: dict[str, Tower] = {}

    @classmethod
    def start(
        cls,
        weights: UAEWeights,
        configs: Mapping[str, TowerConfig],
        text: TextSettings,
        mesh: Mesh,
        *,
        dtype: Any,
        seed: int,
        keep_reference: bool = False,
    ) -> tuple["UAETowers", dict[str, Tree], dict[str, Tree]]:
        """Makes the towers of a model.

        Args:
          weights: of the model; its parameters may become part of the result.
          configs: what is trained of each of `NAMES`.
          text: how captions are read.
          mesh: where everything goes.
          dtype: of activations and of what is frozen; the VAE is always float32, for latents are what is aimed at.
          seed: of new adapters.
          keep_reference: see `towers.start`.

        Returns:
          (the towers, what is trained of each, what is frozen: of each tower by its name, "vae", "pooled", and
          "negative" [T, D] or "negative_tokens", whichever the settings make constant).
        """
        loop = cls(weights, text, mesh)
        params: dict[str, Tree] = {}
        frozen: dict[str, Tree] = {"pooled": uae_models.pooled_constant(weights, loop.prompts, mesh)}
        frozen["vae"] = jax.tree.map(lambda x: x.astype(jnp.float32), weights.vae.params)
        adapters = {"encoder": weights.encoder_lora, "projector": None, "decoder": weights.decoder_lora}
        for number, name in enumerate(NAMES):
            loop.towers[name], trainable, frozen[name] = towers.start(
                getattr(weights, name),
                configs[name],
                adapters[name],
                dtype=dtype,
                seed=seed * len(NAMES) + number,
                mesh=mesh,
                buffers=sd3.BUFFERS if name == "decoder" else (),
                keep_reference=keep_reference,
            )
            if trainable:
                params[name] = trainable
        if loop.reader_changes:
            frozen["negative_tokens"] = loop._negative_tokens
        else:  # constant, so it is read once
            with use_mesh(mesh):
                read = jax.jit(loop.read)({}, frozen, loop._negative_tokens)
            frozen["negative"] = read[0].astype(jnp.float32)
        whole = NamedSharding(mesh, PartitionSpec())
        small = [name for name in ("pooled", "negative", "negative_tokens") if name in frozen]
        frozen |= {name: jax.device_put(frozen[name], whole) for name in small}
        return loop, params, frozen

    @property
    def axes(self) -> dict[str, Tree]:
        """Logical axes of what is trained."""
        return {name: tower.axes for name, tower in self.towers.items() if tower.axes}

    @property
    def reader_changes(self) -> bool:
        """Whether the encoder that reads captions is being trained."""
        return bool(self.towers["encoder"].axes) and self.text.conditioning == "current"

    def gathered(self, params: Tree, frozen: Tree) -> tuple[Tree, Tree]:
        """Both, with every weight of the towers whole over the axis "fsdp", see `sharding.gathered`."""
        fixed = {name: sharding.gathered(frozen[name], self.towers[name].frozen_axes) for name in NAMES}
        return sharding.gathered(params, {name: self.towers[name].axes for name in params}), {**frozen, **fixed}

    def variables(self, name: str, params: Tree, frozen: Tree) -> dict[str, Tree]:
        """What a tower's module is applied to."""
        return self.towers[name].variables(params.get(name, {}), frozen[name])

    def reader_variables(self, params: Tree, frozen: Tree) -> dict[str, Tree]:
        """The encoder as it reads captions for the decoder."""
        if self.text.conditioning == "current":
            return self.variables("encoder", params, frozen)
        return self.towers["encoder"].base(frozen["encoder"])

    def read(self, params: Tree, frozen: Tree, batch: dict) -> Array:
        """Hidden states [B, T, D] of texts, see `painted_text.hidden_states`."""
        variables = self.reader_variables(params, frozen)
        return painted_text.hidden_states(self.towers["encoder"].module, variables, batch)

    def negative(self, params: Tree, frozen: Tree, length: int, dtype: Any) -> Array:
        """The hidden states of the negative prompt, as long as texts are: [1, T, D]."""
        constant = frozen.get("negative")
        hidden = self.read(params, frozen, frozen["negative_tokens"])[0] if constant is None else constant
        return painted_text.widened(hidden, length)[None].astype(dtype)

    def project(self, params: Tree, frozen: Tree, hidden: Array, lengths: Array) -> Conditioning:
        """Conditioning of hidden states [B, T, D], of which the decoder sees `lengths`, i32[B]."""
        variables = self.variables("projector", params, frozen)
        return Conditioning(self.towers["projector"].module.apply(variables, hidden), lengths)

    def conditions(self, params: Tree, frozen: Tree, hidden: Array, lengths: Array, guided: bool) -> tuple:
        """(positive, negative) conditioning of captions' hidden states; no negative where there is no guidance."""
        told = self.project(params, frozen, hidden, lengths)
        if not guided:
            return told, None
        away = jnp.broadcast_to(self.negative(params, frozen, hidden.shape[1], hidden.dtype), hidden.shape)
        return told, self.project(params, frozen, away, lengths)

    def velocity(
        self,
        variables: Tree,
        frozen: Tree,
        schedule: Schedule,
        conditions: tuple[Conditioning, Conditioning | None],
        guidance: float,
        **how: bool,
    ) -> Any:
        """The decoder's velocity (x, step) -> v under guidance; `how` as `painting.guided_velocity` takes it."""
        module, pooled = self.towers["decoder"].module, frozen["pooled"]
        return painting.guided_velocity(module, variables, schedule, pooled, *conditions, guidance, **how)

    def decode(self, frozen: Tree, latents: Array) -> Array:
        """f32[B, H, W, 3] in [-1, 1] of normalised latents f32[B, h, w, Z]."""
        return painting.decode(self.vae, frozen["vae"], latents)

    def latents(self, frozen: Tree, images_u8: Array) -> Array:
        """Normalised latents f32[B, h, w, Z] of u8[B, H, W, 3]: the posterior's mean."""
        posterior = self.vae.apply({"params": frozen["vae"]}, images.to_pm1(images_u8), method="encode")
        return normalise_latents(posterior.mode(), self.vae_config)

    def latent_shape(self, images_u8: Array) -> tuple[int, int, int]:
        """(h, w, Z) of the latents of u8[B, H, W, 3]."""
        scale = self.vae_config.downsampling
        return images_u8.shape[1] // scale, images_u8.shape[2] // scale, self.vae_config.latent_channels

    def schedule(self, steps: int, **settings: Any) -> Schedule:
        """Noise levels with the model's own shift; further settings as `flow.make_schedule`."""
        return flow.make_schedule(steps, **({"shift": self.scheduler_shift} | settings))

    def finished(self, params: Tree, frozen: Tree) -> dict[str, Any]:
        """Attributes of `UAEWeights` that training changed."""
        changed: dict[str, Any] = {}
        for name in params:
            model, adapter = self.towers[name].finished(params[name], frozen[name])
            changed[name] = model
            if name != "projector":
                changed[f"{name}_lora"] = adapter
        return changed

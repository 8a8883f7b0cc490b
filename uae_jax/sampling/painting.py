"""From conditioning to pixels: the decoder's velocity under guidance, and the VAE, in one program.

Letters: B images, H/W image height and width, h/w latent height and width, Z latent channels, N steps, E conditioning.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from uae_jax.models.autoencoder_kl import AutoencoderKL, denormalise_latents
from uae_jax.models.sd3 import Modulation, SD3Transformer
from uae_jax.parallel.sharding import constrain
from uae_jax.sampling import flow
from uae_jax.sampling.conditioning import Conditioning
from uae_jax.sampling.flow import Schedule
from uae_jax.sampling.widths import at_width

Array = jax.Array
Tree = Any
Variables = dict[str, Any]

TILE = 1024  # pixels; larger images are decoded in overlapping tiles of this side
OVERLAP = 0.25  # of a tile that neighbours share
_VELOCITY = "velocity"  # its name for `keep_velocities`
# Of rematerialisation: all else is made again.
keep_velocities = jax.checkpoint_policies.save_only_these_names(_VELOCITY)


def modulations(decoder: SD3Transformer, variables: Variables, schedule: Schedule, pooled: Array) -> Modulation:
    """The modulation of every step at once, since the pooled vector is constant: its weights are read once per
    rollout instead of once per step.

    Args:
      pooled: f[V].

    Returns:
      A `Modulation` whose batch axis is the step.
    """
    timestep = schedule.timestep
    table = decoder.apply(
        variables, timestep, jnp.broadcast_to(pooled, (timestep.shape[0], *pooled.shape)), method="modulation"
    )
    # Steps are no batch: split over devices as if they were, the whole table would be gathered again at every step.
    return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), table)


def at_step(modulation: Modulation, step: Array) -> Modulation:
    """Picks one step out of `modulations`, as a batch of one that serves all images."""

    def pick(axis: int) -> Callable[[Array], Array]:
        return lambda x: jax.lax.dynamic_slice_in_dim(x, step, 1, axis)

    return Modulation(
        layers=tuple(jax.tree.map(pick(1), run) for run in modulation.layers),
        last=jax.tree.map(pick(0), modulation.last),
        out=pick(0)(modulation.out),
    )


def under_guidance(
    positive: Conditioning,
    negative: Conditioning | None = None,
    guidance: Array | float = 1.0,
    learn_negative: bool = True,
    cut: bool = False,
) -> Callable[..., Array]:
    """Makes what evaluates a velocity under classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

    With a negative v = v_neg + guidance (v_pos - v_neg), in float32; both branches run as one batch if both learn.

    Args:
      positive: B rows.
      negative: B rows, or None for no guidance.
      guidance: f32[].
      learn_negative: whether a gradient flows through the negative branch.
      cut: evaluate at the width that holds the longest text, see `at_width`.

    Returns:
      (denoise, shared, *rows [B, ...]) -> f32[B, h, w, Z], where denoise(context, lengths, shared, *rows) is the
      decoder's velocity; all that a gradient is to flow to must be in `shared` or among the rows.
    """

    def evaluate(denoise: Callable[..., Array], told: Conditioning, shared: Tree, rows: Sequence[Array]) -> Array:
        if cut:
            v = at_width(denoise, told.context, told.lengths, told.lengths, shared, *rows)
        else:
            v = denoise(told.context, told.lengths, shared, *rows)
        kept = checkpoint_name(v.astype(jnp.float32).reshape(len(v), -1), _VELOCITY)  # a TPU pads channels to 128
        return kept.reshape(v.shape)

    if negative is None:
        return lambda denoise, shared, *rows: evaluate(denoise, positive, shared, rows)
    both = jax.tree.map(_interleave, negative, positive)

    def velocity(denoise: Callable[..., Array], shared: Tree, *rows: Array) -> Array:
        if learn_negative:
            v = evaluate(denoise, both, shared, [_interleave(x, x) for x in rows])
            away, towards = jnp.moveaxis(v.reshape(-1, 2, *v.shape[1:]), 1, 0)
        else:  # apart, lest the way back go through both
            away = evaluate(denoise, *jax.lax.stop_gradient((negative, shared, rows)))
            towards = evaluate(denoise, positive, shared, rows)
        return away + guidance * (towards - away)

    return velocity


def guided_velocity(
    decoder: SD3Transformer,
    variables: Variables,
    schedule: Schedule,
    pooled: Array,
    positive: Conditioning,
    negative: Conditioning | None = None,
    guidance: Array | float = 1.0,
    learn_negative: bool = True,
    cut: bool = False,
) -> Callable[[Array, Array], Array]:
    """Makes the velocity function of a rollout.

    Args:
      decoder: the module.
      variables: {"params": ..., and maybe "lora": ...}.
      schedule: the steps.
      pooled: f[V], constant.
      positive, negative, guidance, learn_negative, cut: see `under_guidance`.

    Returns:
      (x f32[B, h, w, Z], step i32[]) -> f32[B, h, w, Z].
    """
    table = modulations(decoder, variables, schedule, pooled)
    guided = under_guidance(positive, negative, guidance, learn_negative, cut)

    def denoise(context: Array, lengths: Array, shared: tuple[Variables, Modulation], x: Array) -> Array:
        weights, modulation = shared
        return decoder.apply(weights, x, context, modulation, lengths, method="denoise")

    return lambda x, step: guided(denoise, (variables, at_step(table, step)), x)


def _interleave(first: Array, second: Array) -> Array:
    """Joins two batches row by row, so that both branches of an image stay on the device that has the image."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def decode(vae: AutoencoderKL, params: Any, latents: Array) -> Array:
    """Turns normalised latents f32[B, h, w, Z] into images f32[B, H, W, 3] in [-1, 1], in tiles above 1024 pixels."""
    latents = denormalise_latents(latents, vae.config)
    side = TILE // vae.config.downsampling
    if max(latents.shape[1:3]) <= side:
        images = vae.apply({"params": params}, latents, method="decode")
    else:
        images = _decode_tiled(vae, params, latents, side)
    return jnp.clip(images.astype(jnp.float32), -1.0, 1.0)


def _decode_tiled(vae: AutoencoderKL, params: Any, latents: Array, side: int) -> Array:
    """Decodes equal, evenly spaced tiles one after another and blends where they overlap."""
    batch, height, width, _ = latents.shape
    scale = vae.config.downsampling
    tile_h, tops = _tiles(height, side)
    tile_w, lefts = _tiles(width, side)
    places = jnp.asarray([(top, left) for top in tops for left in lefts], jnp.int32)
    weight = _ramp(tile_h * scale)[:, None, None] * _ramp(tile_w * scale)[None, :, None]  # [tile, tile, 1]

    def add(total: tuple[Array, Array], place: Array) -> tuple[tuple[Array, Array], None]:
        image, weights = total
        part = jax.lax.dynamic_slice(latents, (0, place[0], place[1], 0), (batch, tile_h, tile_w, latents.shape[-1]))
        pixels = vae.apply({"params": params}, part, method="decode").astype(jnp.float32) * weight
        at = (0, place[0] * scale, place[1] * scale, 0)
        image = jax.lax.dynamic_update_slice(image, jax.lax.dynamic_slice(image, at, pixels.shape) + pixels, at)
        there = jax.lax.dynamic_slice(weights, at[1:], weight.shape)
        return (image, jax.lax.dynamic_update_slice(weights, there + weight, at[1:])), None

    blank = jnp.zeros((batch, height * scale, width * scale, vae.config.out_channels), jnp.float32)
    (image, weights), _ = jax.lax.scan(add, (blank, blank[0, :, :, :1]), places)
    return image / weights


def _tiles(length: int, side: int) -> tuple[int, list[int]]:
    """Side of the tiles and where they begin: as few as overlap enough, evenly spaced from edge to edge."""
    if length <= side:
        return length, [0]
    count = -(-(length - side) // int(side * (1 - OVERLAP))) + 1
    return side, [round(i * (length - side) / (count - 1)) for i in range(count)]


def _ramp(size: int) -> Array:
    """Weights of a tile's rows: 1 inside, falling towards the edges over the overlap, never 0."""
    edge = max(int(size * OVERLAP), 1)
    distance = jnp.minimum(jnp.arange(size), jnp.arange(size)[::-1]) + 1
    return jnp.minimum(distance / edge, 1.0)


def paint(
    decoder: SD3Transformer,
    variables: Variables,
    vae: AutoencoderKL,
    vae_params: Any,
    schedule: Schedule,
    pooled: Array,
    positive: Conditioning,
    negative: Conditioning | None,
    guidance: Array | float,
    latents: Array,
    keys: Array | None = None,
) -> Array:
    """Paints a batch: all steps and the VAE. To be called inside `jit`.

    Args:
      decoder, variables, schedule, pooled, positive, negative, guidance: see `guided_velocity`.
      vae, vae_params: module and parameters.
      latents: f32[B, h, w, Z], noise.
      keys: a PRNG key per image, where the schedule adds noise.

    Returns:
      f32[B, H, W, 3] in [-1, 1].
    """
    velocity = guided_velocity(decoder, variables, schedule, pooled, positive, negative, guidance)
    final, _ = flow.sample(velocity, latents, schedule, keys)
    return decode(vae, vae_params, final)


def to_unit(images: Array) -> Array:
    """[-1, 1] -> f32 in [0, 1], as scorers take them: x / 2 + 1/2."""
    return jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0.0, 1.0)


def to_uint8(images: Array) -> Array:
    """[-1, 1] -> u8, rounded, as diffusers does: 255 (x / 2 + 1/2)."""
    return jnp.round(to_unit(images) * 255).astype(jnp.uint8)

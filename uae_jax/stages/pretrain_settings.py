"""Settings of stage `pretrain`."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from uae_jax.sampling import flow
from uae_jax.stages import flow_matching, models
from uae_jax.stages.towers import TowerConfig
from uae_jax.stages.uae_towers import NAMES

LATENTS, CONTEXT = "latents", "context"  # names of arrays that samples may bring, see `uae_jax.stages.precompute`


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """Settings of the stage.

    Attributes:
      model: "new:SIZE", or a UAE folder.
      encoder_from: UAE folder whose encoder and tokenizer are taken instead, e.g. the result of `caption_sft`.
      decoder_from: UAE folder whose projector and decoder are taken instead.
      vae_from: AutoencoderKL folder that is taken instead, e.g. the result of `autoencoder`.
      encoder, projector, decoder: what of each is trained.
      precomputed: samples bring latents and hidden states, so neither the encoder nor the VAE's is kept in memory.
      posterior: "sample" draws latents from the VAE's posterior, "mean" takes its mean.
      logit_mean, logit_std: of the noise levels' density, before the shift.
      shift: of the noise levels; 0 takes the model's scheduler's.
      shift_side: side of an image in pixels at which `shift` holds, growing and shrinking with other sizes; 0: it holds
        at any.
      weighting: of squared errors by noise level, see `flow_matching.loss_weight`.
      drop: probability that the negative prompt stands in for a caption.
      negative: the negative prompt; None takes the model's own, or else the published one.
      max_tokens: of a caption; longer ones are cut, and counted.
      token_bucket: the smallest length that texts are padded to; lengths are it times 2^k, or one and a half of that.
      evaluation_sigmas: noise levels at which held-out batches are looked at, with fixed noise.
      pictures, paint_steps, guidance: held-out captions that are painted after an evaluation, and how.
      dtype: of activations and of what is frozen, "float32" or "bfloat16"; the VAE is always float32, for the latents
        are what is aimed at.
      save_dtype: of the weights in the result.
    """

    model: str = "new:tiny"
    encoder_from: str = ""
    decoder_from: str = ""
    vae_from: str = ""
    encoder: TowerConfig = TowerConfig(mode="frozen")
    projector: TowerConfig = TowerConfig()
    decoder: TowerConfig = TowerConfig()
    precomputed: bool = False
    posterior: Literal["sample", "mean"] = "sample"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 0.0
    shift_side: int = 0
    weighting: flow_matching.Weighting = "none"
    drop: float = 0.1
    negative: str | None = None
    max_tokens: int = 512
    token_bucket: int = 32
    evaluation_sigmas: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    pictures: int = 8
    paint_steps: int = 20
    guidance: float = 3.0
    dtype: str = "float32"
    save_dtype: Literal["float32", "bfloat16"] = "float32"


def check(settings: PretrainSettings) -> None:
    """Raises `ValueError` on settings that cannot be."""
    if all(getattr(settings, name).mode == "frozen" for name in NAMES):
        raise ValueError("encoder, projector and decoder are all 'frozen', which leaves nothing to train")
    if settings.projector.mode == "lora":
        raise ValueError("projector.mode is 'lora', which the published layout has no place for; wanted 'full'")
    if settings.precomputed and settings.encoder.mode != "frozen":
        raise ValueError(f"precomputed hidden states are a frozen encoder's, but its mode is {settings.encoder.mode!r}")
    if not 0 <= settings.drop < 1:
        raise ValueError(f"drop is {settings.drop}, wanted 0 or more and less than 1")
    if settings.shift < 0 or settings.shift_side < 0:
        raise ValueError(f"shift is {settings.shift}, shift_side {settings.shift_side}, wanted 0 or more")
    if settings.logit_std < 0:
        raise ValueError(f"logit_std is {settings.logit_std}, wanted 0 or more")
    if not settings.evaluation_sigmas or not all(0 < level <= 1 for level in settings.evaluation_sigmas):
        raise ValueError(f"evaluation_sigmas are {settings.evaluation_sigmas}, wanted some in (0, 1]")
    if settings.max_tokens < 1:
        raise ValueError(f"max_tokens is {settings.max_tokens}, wanted at least 1")
    flow_matching.loss_weight(jnp.ones(1), settings.weighting)
    flow.sigmas(settings.paint_steps)
    models.runtime(settings.dtype)

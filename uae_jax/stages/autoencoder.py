"""Stage `autoencoder`: a VAE whose latents the decoder is to paint in (Rombach et al. 2022, arXiv 2112.10752).

Trains all of AutoencoderKL on pixel errors and the KL divergence to a standard normal. The published recipe adds a
perceptual and an adversarial loss, for which there are no weights here; without them reconstructions are faithful in
PSNR and soft in fine texture.

Letters: B images, H/W height and width in pixels, h/w the same in latents, Z latent channels.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from uae_jax.data.records import Sample
from uae_jax.models.autoencoder_kl import Posterior
from uae_jax.stages import images, models
from uae_jax.stages.balance import balanced
from uae_jax.stages.base import Aux, Parts, Picture, Stage
from uae_jax.weights.architecture import Pretrained
from uae_jax.weights.new import UAE_SIZES
from uae_jax.weights.pretrained import save_pretrained

Array = jax.Array
Tree = Any

SIZES = {size: parts["vae"] for size, parts in UAE_SIZES.items()}
_LEAST_STD = 1e-6  # latents that are all alike have no scale; the folder must still load


@dataclasses.dataclass(frozen=True)
class AutoencoderSettings:
    """Settings of the stage.

    Attributes:
      model: "new:tiny", "new:small" or a diffusers folder.
      l2, l1: weights of the squared and of the absolute error per pixel value, on a scale of -1 to 1.
      kl_weight: of the KL divergence in nats, summed over an image's latents and divided by its pixel values, H W 3.
        The pixel errors are means over the same number, so that the ratio is that of latent diffusion, which sums
        both: its 1e-6 is 1e-6 here.
      statistics_decay: of the running moments of the latents, per step.
      balance: whether latents are turned, once trained, so that their channels have variance 1 and none follows another
        (`balance.py`): for a decoder that is trained from nothing. One that is there already knows them as they were.
      pictures: images that are shown after an evaluation.
      dtype: of activations, "float32" or "bfloat16".
      remat: what the backward pass keeps, see `Runtime`.
    """

    model: str = "new:tiny"
    l2: float = 1.0
    l1: float = 0.0
    kl_weight: float = 1e-6
    statistics_decay: float = 0.99
    balance: bool = False
    pictures: int = 8
    dtype: str = "float32"
    remat: str = "none"


class Autoencoder(Stage):
    """See the module. A batch is {"images": u8[B, H, W, 3]}; the state is the latents' running statistics."""

    Settings = AutoencoderSettings
    needs_captions = False

    def __init__(self, settings: AutoencoderSettings, seed: int = 0):
        """Checks the settings.

        Raises:
          ValueError: on a weight below 0, no pixel error at all, or an unknown size.
        """
        super().__init__(settings, seed)
        models.check_name(settings.model, SIZES)
        if min(settings.l2, settings.l1, settings.kl_weight) < 0 or settings.l2 + settings.l1 == 0:
            raise ValueError(
                f"l2 is {settings.l2}, l1 {settings.l1}, kl_weight {settings.kl_weight}; "
                "wanted none below 0, and l2 or l1 above it"
            )
        if not 0 <= settings.statistics_decay < 1:
            raise ValueError(f"statistics_decay is {settings.statistics_decay}, wanted from 0 to below 1")
        self.runtime = models.runtime(settings.dtype, settings.remat)
        self.model: Pretrained | None = None

    def look_for_models(self) -> None:
        models.look_for(self.settings.model)

    def load(self, mesh: Mesh) -> Parts:
        self.model = models.open_start(self.settings.model, SIZES, self.seed, mesh).model
        params, self.model.params = self.model.params, None  # the loop's from here on
        axes = self.model.architecture.logical_axes.tree(params)
        return Parts(params, state=_no_statistics(self.model.config.latent_channels), params_axes=axes)

    def collate(self, samples: Sequence[Sample]) -> Tree:
        batch = images.stack_images(samples)
        side = self.model.config.downsampling
        if batch.shape[1] % side or batch.shape[2] % side:
            height, width = batch.shape[1:3]
            raise ValueError(f"images are {width}x{height} pixels, wanted multiples of {side}; set multiple_of to it")
        return {"images": batch}

    def loss(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Array, Aux]:
        pixels = images.to_pm1(batch["images"])
        posterior, latents, painted = self._reconstruct(params, pixels, key)
        value, metrics = self._errors(pixels, painted, posterior)
        metrics["latent_std"] = latents.std()
        return value.mean(), Aux(metrics, self._with_statistics(state, latents), value)

    def evaluate(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> dict[str, Array]:
        """As the loss, but through the mode of the posterior, as whoever uses the VAE does."""
        pixels = images.to_pm1(batch["images"])
        posterior, latents, painted = self._reconstruct(params, pixels, None)
        value, metrics = self._errors(pixels, painted, posterior)
        return {"loss": value.mean(), **metrics, "latent_std": latents.std()}

    def pictures(
        self, params: Tree, state: Tree, frozen: Tree, batch: Tree, samples: Sequence[Sample]
    ) -> list[Picture]:
        painted = images.to_u8(self._painted(params, batch["images"][: self.settings.pictures]))
        rows = [(sample.image, image) for sample, image in zip(samples, painted, strict=False)]
        texts = [sample.id for sample, _ in zip(samples, painted, strict=False)]
        return [Picture("reconstructions", ("original", "reconstruction"), rows, texts)]

    def save(self, params: Tree, state: Tree, frozen: Tree, folder: Path) -> None:
        """Writes a diffusers AutoencoderKL whose factors bring these latents to deviation 1; see also `balance`."""
        config = self.model.config
        if int(state["updates"]):
            mean, covariance = self._statistics(state)
            if self.settings.balance:
                params = balanced(params, config, covariance)
                config = dataclasses.replace(config, scaling_factor=1.0, shift_factor=0.0)
            else:
                # Of all numbers together: what lies between the channels' means counts as well.
                std = max(float(np.diag(covariance).mean() + mean.var()), _LEAST_STD**2) ** 0.5
                config = dataclasses.replace(config, scaling_factor=1 / std, shift_factor=float(mean.mean()))
        save_pretrained(Pretrained(self.model.architecture, config, params), folder, force=True)

    def _reconstruct(self, params: Tree, pixels: Array, key: Array | None) -> tuple[Posterior, Array, Array]:
        """f32[B, H, W, 3] -> the posterior, a sample of it (its mode without a key), f32[B, H, W, 3]."""
        module = self.model.architecture.module(self.model.config, self.runtime)
        posterior = module.apply({"params": params}, pixels, method="encode")
        latents = posterior.mode() if key is None else posterior.sample(key)
        return posterior, latents, module.apply({"params": params}, latents, method="decode")

    @functools.cached_property
    def _painted(self) -> Any:
        return jax.jit(lambda params, batch: self._reconstruct(params, images.to_pm1(batch), None)[2])

    def _errors(self, pixels: Array, painted: Array, posterior: Posterior) -> tuple[Array, dict[str, Array]]:
        """The loss of each image, f32[B], and what it is made of."""
        s = self.settings
        squared = jnp.square(painted - pixels).mean((1, 2, 3))
        absolute = jnp.abs(painted - pixels).mean((1, 2, 3))
        kl = kl_to_standard_normal(posterior)
        value = s.l2 * squared + s.l1 * absolute + s.kl_weight * kl / pixels[0].size
        shown = jnp.square(jnp.clip(painted, -1, 1) - pixels).mean((1, 2, 3)) / 4  # in [0, 1], where white is 1
        psnr = -10 * jnp.log10(jnp.maximum(shown, 1e-10))
        return value, {"mse": squared.mean(), "l1": absolute.mean(), "psnr": psnr.mean(), "kl": kl.mean()}

    def _with_statistics(self, state: Tree, latents: Array) -> Tree:
        """Averages the first two moments over steps, exponentially; sums of weights are kept to undo the start."""
        latents = jax.lax.stop_gradient(latents).reshape(-1, latents.shape[-1])
        decay = self.settings.statistics_decay
        square = jnp.matmul(latents.T, latents, precision="highest") / len(latents)
        return {
            "mean": decay * state["mean"] + (1 - decay) * latents.mean(0),
            "square": decay * state["square"] + (1 - decay) * square,
            "weight": decay * state["weight"] + (1 - decay),
            "updates": state["updates"] + 1,
        }

    def _statistics(self, state: Tree) -> tuple[np.ndarray, np.ndarray]:
        """Mean f64[Z] and covariance f64[Z, Z] of the latents' channels."""
        mean, square = (np.asarray(state[name], np.float64) / float(state["weight"]) for name in ("mean", "square"))
        return mean, square - np.outer(mean, mean)


def kl_to_standard_normal(posterior: Posterior) -> Array:
    """KL(posterior || N(0, 1)) of each image: f32[B], nats, summed over h, w and Z."""
    mean, logvar = posterior.mean, posterior.logvar
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar, axis=(1, 2, 3))


def _no_statistics(channels: int) -> Tree:
    return {
        "mean": jnp.zeros(channels, jnp.float32),
        "square": jnp.zeros((channels, channels), jnp.float32),
        "weight": jnp.zeros((), jnp.float32),
        "updates": jnp.zeros((), jnp.int32),
    }

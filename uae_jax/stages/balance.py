"""Turns a trained VAE's latents so that no channel outweighs the others: the images it paints stay the same.

Flow matching weighs latents by their variance. A VAE without a strong prior puts what pixels differ in most, brightness
and colour, into a direction of great variance, and outlines into directions of little: noise drowns those first, and a
decoder gains next to nothing from learning them. After C^(-1/2), C the channels' covariance, all directions count the
same.
"""

from typing import Any

import numpy as np

from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.parallel import global_arrays

Tree = Any

_LEAST = 1e-6  # of a direction's variance over the greatest: what is less is taken to be nothing but rounding


def balanced(params: Tree, config: AutoencoderKLConfig, covariance: np.ndarray) -> Tree:
    """The same VAE with latents C^(-1/2) z: channels of variance 1, none of which tells of another.

    The matrix goes into the encoder's last convolution and its inverse into the decoder's first, so that images through
    the mode of the posterior are the same but for rounding. The posterior stays diagonal: each channel's variance is
    multiplied by what C^(-1/2) would make of it if all channels had the same.

    Args:
      params: of AutoencoderKL; not written to. Where processes share it, all of them call this.
      config: says which convolution is the last, and which the first.
      covariance: f64[Z, Z] of the latents' channels.

    Raises:
      ValueError: if the covariance is not of Z channels, or not finite.
    """
    channels = config.latent_channels
    covariance = np.asarray(covariance, np.float64)
    if covariance.shape != (channels, channels) or not np.isfinite(covariance).all():
        raise ValueError(
            f"covariance of shape {covariance.shape}, finite: {bool(np.isfinite(covariance).all())}; "
            f"wanted finite ({channels}, {channels})"
        )
    variances, directions = np.linalg.eigh(covariance)
    deviations = np.sqrt(np.maximum(variances, max(_LEAST * variances.max(), np.finfo(np.float32).tiny)))
    turn, back = (directions @ np.diag(scale) @ directions.T for scale in (1 / deviations, deviations))

    last = ("quant_conv",) if config.use_quant_conv else ("encoder", "conv_out")
    first = ("post_quant_conv",) if config.use_post_quant_conv else ("decoder", "conv_in")
    spread = 2 * np.log(np.linalg.norm(turn, axis=1)).astype(np.float32)  # of logarithms of variances
    return _changed(_changed(params, last, lambda conv: _out(conv, turn, spread)), first, lambda conv: _in(conv, back))


def _out(conv: Tree, turn: np.ndarray, spread: np.ndarray) -> Tree:
    """Moments with their mean turned and their logvar raised."""
    channels, conv = len(turn), global_arrays.to_host(conv)
    kernel, bias = (np.array(conv[name], np.float64) for name in ("kernel", "bias"))
    kernel[..., :channels] = kernel[..., :channels] @ turn.T
    bias[:channels] = turn @ bias[:channels]
    bias[channels:] += spread
    return {"kernel": kernel.astype(conv["kernel"].dtype), "bias": bias.astype(conv["bias"].dtype)}


def _in(conv: Tree, back: np.ndarray) -> Tree:
    """A convolution that turns latents back before anything else."""
    stored = global_arrays.to_host(conv["kernel"])
    kernel = np.einsum("hwzd,zi->hwid", np.asarray(stored, np.float64), back)
    return {**conv, "kernel": kernel.astype(stored.dtype)}


def _changed(tree: Tree, path: tuple[str, ...], change: Any) -> Tree:
    """A copy of a tree, one branch of it changed."""
    name, *rest = path
    return {**tree, name: _changed(tree[name], tuple(rest), change) if rest else change(tree[name])}

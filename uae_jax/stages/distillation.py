"""The losses of the DINO family, and the head that they are taken behind.

Oquab et al. 2023 (DINOv2, arXiv 2304.07193), section 4; Caron et al. 2021 (DINO, arXiv 2104.14294).

Letters: B images, N tokens or images that are scored, D width, K prototypes.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from uae_jax.models.layers import Linear
from uae_jax.models.runtime import Runtime
from uae_jax.parallel.sharding import LogicalAxes

Array = jax.Array

HEAD_AXES = LogicalAxes(
    (r"up/kernel", ("embed", "mlp")),
    (r"up/bias", ("mlp",)),
    (r"across/kernel", ("mlp", None)),
    (r"across/bias", (None,)),
    (r"down/kernel", (None, None)),
    (r"down/bias", (None,)),
    (r"prototypes", (None, "vocab")),
)
_SINKHORN_ROUNDS = 3  # as DINOv2


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Sizes of a projection head.

    Attributes:
      hidden: width of its two hidden layers.
      bottleneck: width of the unit vectors that are compared with prototypes.
      prototypes: K.
    """

    hidden: int = 256
    bottleneck: int = 64
    prototypes: int = 1024

    def __post_init__(self):
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"head is {dataclasses.astuple(self)}, wanted numbers above 0")


class Head(nn.Module):
    """Three layers, a unit vector, and its cosine with each of K prototypes."""

    config: HeadConfig
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [..., D] -> f32[..., K], in [-1, 1]
        c, run = self.config, self.runtime
        small = nn.initializers.truncated_normal(0.02)
        x = nn.gelu(Linear(c.hidden, runtime=run, kernel_init=small, name="up")(x))
        x = nn.gelu(Linear(c.hidden, runtime=run, kernel_init=small, name="across")(x))
        x = Linear(c.bottleneck, runtime=run, kernel_init=small, name="down")(x).astype(jnp.float32)
        prototypes = self.param("prototypes", nn.initializers.normal(1.0), (c.bottleneck, c.prototypes), jnp.float32)
        return unit(x) @ unit(prototypes, axis=0)


def unit(x: Array, axis: int = -1) -> Array:
    """Vectors of length 1; zero stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis, keepdims=True), 1e-24))


def sinkhorn(logits: Array, temperature: Array | float, weights: Array | None = None) -> Array:
    """Targets that use all prototypes alike over the whole batch, by Sinkhorn and Knopp's alternation.

    Args:
      logits: f32[N, K] of the teacher.
      temperature: sharpness of the targets.
      weights: f32[N], 1 for rows that count, 0 for others; None counts all. The rows of others are all zero.

    Returns:
      f32[N, K], rows that sum to 1.
    """
    weights = jnp.ones(logits.shape[0]) if weights is None else weights
    scaled = logits / temperature
    scaled = scaled - jnp.max(jnp.where(weights[:, None] > 0, scaled, -jnp.inf), initial=-1e30)
    q = jnp.where(weights[:, None] > 0, jnp.exp(scaled), 0.0)
    q = q / _positive(q.sum())
    count = _positive(weights.sum())
    for _ in range(_SINKHORN_ROUNDS):
        q = q / _positive(q.sum(0, keepdims=True)) / logits.shape[1]  # each prototype's share is 1 / K
        q = q / _positive(q.sum(1, keepdims=True)) / count  # each row's is 1 / N
    return q * count


def centred(logits: Array, temperature: Array | float, centre: Array) -> Array:
    """Targets without what is common to all images: softmax((logits - centre) / temperature), f32[N, K]."""
    return jax.nn.softmax((logits - centre) / temperature, axis=-1)


def mean_logits(logits: Array, weights: Array | None = None) -> Array:
    """What a running centre takes in: the mean over the rows that count, f32[N, K] -> f32[K]."""
    if weights is None:
        return logits.mean(0)
    return (weights[:, None] * logits).sum(0) / _positive(weights.sum())


def cross_entropy(targets: Array, logits: Array, temperature: float) -> Array:
    """-sum_k targets log softmax(logits / temperature): f32[..., K] twice -> f32[...], nats."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits / temperature, axis=-1), axis=-1)


def koleo(features: Array) -> Array:
    """The KoLeo regulariser (Sablayrolles et al. 2019), which spreads features evenly: f32[B, D] -> f32[B].

    -log of the distance to the nearest other image of the whole batch, after bringing all to length 1.
    """
    x = unit(features.astype(jnp.float32))
    cosine = jax.lax.stop_gradient(x @ x.T) - 2 * jnp.eye(len(x))
    nearest = x[jnp.argmax(cosine, axis=1)]
    distance = jnp.sqrt(jnp.sum(jnp.square(x - nearest), axis=-1) + 1e-16)
    return -jnp.log(distance + 1e-8)


def random_mask(key: Array, batch: int, patches: int, ratio: tuple[float, float], share: float) -> Array:
    """Which patches are hidden from the student: bool[B, patches].

    Of an image that is masked at all, which happens with probability `share`, a part of the patches within `ratio` is
    hidden, drawn one by one (not in blocks).
    """
    which_key, ratio_key, order_key = jax.random.split(key, 3)
    masked = jax.random.bernoulli(which_key, share, (batch, 1))
    part = jax.random.uniform(ratio_key, (batch, 1), minval=ratio[0], maxval=ratio[1])
    order = jnp.argsort(jnp.argsort(jax.random.uniform(order_key, (batch, patches)), axis=1), axis=1)
    return masked & (order < jnp.round(part * patches))


def entropy(targets: Array) -> Array:
    """f32[..., K] that sum to 1 -> f32[...], nats."""
    return -jnp.sum(targets * jnp.log(jnp.maximum(targets, 1e-12)), axis=-1)


def spread(features: Array) -> Array:
    """Standard deviation of unit features over the batch, f32[B, D] -> f32[]: 1 if they point anywhere, 0 if alike."""
    x = unit(features.astype(jnp.float32))
    return jnp.sqrt(jnp.sum(jnp.square(x - x.mean(0)), axis=-1).mean())


def _positive(x: Array) -> Array:
    return jnp.maximum(x, 1e-30)

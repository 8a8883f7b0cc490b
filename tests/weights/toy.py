"""A small architecture of this package, and its PyTorch twin, for tests of what all architectures share.

It has one of each kind of parameter: an embedding, a scanned stack with plain and fused linear layers and a norm, a
patch convolution, a scalar, and a linear layer outside the stack.

Letters: B batch, T tokens, D width, M hidden width, V vocabulary, L layers.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.models.layers import Linear, patches, rms_norm
from uae_jax.models.runtime import Runtime, scan_layers
from uae_jax.parallel.sharding import LogicalAxes, constrain
from uae_jax.weights.architecture import Architecture
from uae_jax.weights.checkpoint import MODEL
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.table import SAME, Entry, fused, fused_bias, linear, module, norm, patch

NAME = "ToyModel"
PATCH, CHANNELS = 2, 3


@dataclasses.dataclass(frozen=True)
class Scaling:
    """A nested part of the config, as some architectures have."""

    epsilon: float = 1e-6
    gain: float | None = None


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """Sizes of the toy."""

    depth: int = 3
    width: int = 8
    hidden: int = 12
    vocab: int = 10
    out: int = 6
    scaling: Scaling = Scaling()
    sides: tuple[int, ...] = (4, 4)

    def __post_init__(self):
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}, wanted at least 1")


LOGICAL_AXES = LogicalAxes(
    (r"embed/embedding", ("vocab", "embed")),
    (r"patch/kernel", (None, "embed")),
    (r"patch/bias", (None,)),
    (r"scale", ()),
    (r"layers/norm/scale", (None,)),
    (r"layers/qkv/kernel", ("embed", None, "heads")),
    (r"layers/qkv/bias", (None, "heads")),
    (r"layers/up/kernel", ("embed", "mlp")),
    (r"layers/up/bias", ("mlp",)),
    (r"layers/down/kernel", ("mlp", "embed")),
    (r"head/kernel", ("embed", "vocab")),
    (r"head/bias", ("vocab",)),
)


class Layer(nn.Module):
    config: ToyConfig
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:  # [B, T, D]
        h = rms_norm(self.runtime, self.config.scaling.epsilon, name="norm")(x)
        qkv = Linear((3, self.config.width), runtime=self.runtime, name="qkv")(h)  # [B, T, 3, D]
        q, k, v = (qkv[..., i, :] for i in range(3))
        h = Linear(self.config.hidden, runtime=self.runtime, name="up")(jax.nn.sigmoid(q) * k + v)
        h = constrain(jax.nn.silu(h), "batch", "length", "act_mlp")
        x = x + Linear(self.config.width, use_bias=False, runtime=self.runtime, name="down")(h)
        self.sow("intermediates", "hidden", x)
        return x, None


class Toy(nn.Module):
    """Sums an embedded text and an embedded image, and runs a stack of gated layers over it."""

    config: ToyConfig
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, ids: jax.Array, image: jax.Array) -> jax.Array:  # [B, T], [B, H, W, C] -> [B, T, out]
        config, run = self.config, self.runtime
        x = nn.Embed(config.vocab, config.width, param_dtype=run.param_dtype, dtype=run.dtype, name="embed")(ids)
        seen = Linear(config.width, runtime=run, name="patch")(patches(image, PATCH)).mean((1, 2))
        scale = self.param("scale", nn.initializers.ones, (), run.param_dtype)
        x = x + scale * seen[:, None]
        x, _ = scan_layers(Layer, config.depth, run)(config, run, name="layers")(x, None)
        return Linear(config.out, runtime=run, name="head")(x)


def example_inputs(config: ToyConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    return jax.ShapeDtypeStruct((1, 1), "int32"), jax.ShapeDtypeStruct((1, *config.sides, CHANNELS), "float32")


def config_from_json(config_json: dict) -> ToyConfig:
    if config_json.get("activation", "silu") != "silu":
        raise WeightsError(f"{NAME}: activation is {config_json['activation']!r}, wanted 'silu'")
    sizes = {key: config_json[key] for key in ("depth", "width", "hidden", "vocab", "out")}
    return ToyConfig(**sizes, sides=tuple(config_json["sides"]))


def config_to_json(config: ToyConfig) -> dict:
    sizes = {key: getattr(config, key) for key in ("depth", "width", "hidden", "vocab", "out")}
    return {"architectures": [NAME], **sizes, "sides": list(config.sides)}


def table(config: ToyConfig) -> list[Entry]:
    numbers = range(config.depth)
    return [
        Entry("embed/embedding", "embed.weight"),
        Entry("scale", "scale"),
        *module("patch", "patch", {"kernel": ("weight", patch(CHANNELS, PATCH)), "bias": ("bias", SAME)}, None),
        *norm("layers/norm", "blocks.{}.norm", bias=False, layers=numbers),
        *module(
            "layers/qkv",
            "blocks.{}.attn.qkv",
            {"kernel": ("weight", fused(3)), "bias": ("bias", fused_bias(3))},
            numbers,
        ),
        *linear("layers/up", "blocks.{}.mlp.up", layers=numbers),
        *linear("layers/down", "blocks.{}.mlp.down", bias=False, layers=numbers),
        *linear("head", "head"),
    ]


def canonical(tensors, config):
    """The published keys may carry a leading "model.", as where a head was put around the model."""
    return {key.removeprefix("model."): tensor for key, tensor in tensors.items()}


ARCHITECTURE = Architecture(
    name=NAME,
    config_class=ToyConfig,
    module=Toy,
    example_inputs=example_inputs,
    logical_axes=LOGICAL_AXES,
    config_from_json=config_from_json,
    config_to_json=config_to_json,
    table=table,
    canonical=canonical,
    file_stem=MODEL,
)


def params(config: ToyConfig, seed: int = 0, dtype=jnp.float32):
    """Gaussian noise in every parameter, so that none is zero or one by initialisation."""
    leaves, tree = jax.tree.flatten(ARCHITECTURE.abstract(config))
    rng = np.random.default_rng(seed)
    return tree.unflatten([jnp.asarray(rng.normal(size=leaf.shape) * 0.3, dtype) for leaf in leaves])


def inputs(config: ToyConfig, batch: int = 2, length: int = 5, seed: int = 1):
    """Token numbers and an image, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab, (batch, length)).astype(np.int32)
    return ids, rng.normal(size=(batch, *config.sides, CHANNELS)).astype(np.float32)


def run(config: ToyConfig, tree, ids, image, **collections):
    """Applies the model; extra collections by name."""
    return Toy(config).apply({"params": tree, **collections}, ids, image)

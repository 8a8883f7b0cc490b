"""CLIP (Radford et al. 2021, arXiv 2103.00020) and LongCLIP (Zhang et al. 2024, arXiv 2403.15378).

Two transformers, one over image patches and one over text tokens, whose projected features share a space. LongCLIP is
the same network with 248 text positions in place of 77.

Letters: B batch, H/W image height and width, T tokens (patches with the class token, or text), D width, F hidden width,
N heads, K head width, E width of the shared space, I images and S texts that are compared.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from uae_jax.models.attention import attention
from uae_jax.models.layers import ACTIVATIONS, Linear, layer_norm, patches, residual_init
from uae_jax.models.runtime import Runtime, scan_layers
from uae_jax.parallel.sharding import LogicalAxes, constrain

Array = jax.Array

LEGACY_EOS = 2  # published configs from before 2023 say 2, and mean "the token with the highest id ends the text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """What both towers have.

    Attributes:
      width: D.
      hidden: F.
      depth: number of layers.
      heads: N.
      activation: a name in `ACTIVATIONS`.
      epsilon: of the layer norms.
      projection: E, or None for a tower that ends at its pooled token.
    """

    width: int
    hidden: int
    depth: int
    heads: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    projection: int | None = None

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, wanted a multiple of the {self.heads} heads")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}, wanted one of {', '.join(ACTIVATIONS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(TowerConfig):
    """The image tower; images are squares of `image_size`, cut into squares of `patch_size` pixels."""

    image_size: int = 224
    patch_size: int

    def __post_init__(self):
        super().__post_init__()
        if self.image_size < self.patch_size or self.image_size % self.patch_size:
            raise ValueError(f"image_size is {self.image_size}, wanted a multiple of the patch side {self.patch_size}")

    @property
    def tokens(self) -> int:
        """T: the class token and one token for each patch."""
        return 1 + (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(TowerConfig):
    """The text tower.

    Attributes:
      vocab: number of token ids.
      positions: the longest text, in tokens.
      eos_token_id: the text is read off at the first token with this id; `LEGACY_EOS`: at the highest id.
    """

    vocab: int = 49408
    positions: int = 77
    eos_token_id: int = LEGACY_EOS


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers, projected to the same width."""

    vision: CLIPVisionConfig
    text: CLIPTextConfig
    projection: int

    def __post_init__(self):
        got = (self.vision.projection, self.text.projection)
        if got != (self.projection, self.projection):
            raise ValueError(f"towers project to {got[0]} (vision) and {got[1]} (text), wanted {self.projection} both")


def vision_l14() -> CLIPVisionConfig:
    """ViT-L/14, as in openai/clip-vit-large-patch14."""
    return CLIPVisionConfig(width=1024, hidden=4096, depth=24, heads=16, patch_size=14, projection=768)


def text_l14() -> CLIPTextConfig:
    """The text tower of openai/clip-vit-large-patch14, which is SD3's `text_encoder`."""
    return CLIPTextConfig(width=768, hidden=3072, depth=12, heads=12, projection=768)


def text_big_g() -> CLIPTextConfig:
    """The text tower of laion/CLIP-ViT-bigG-14-laion2B-39B-b160k, which is SD3's `text_encoder_2`."""
    return CLIPTextConfig(width=1280, hidden=5120, depth=32, heads=20, activation="gelu", projection=1280)


def clip_l14() -> CLIPConfig:
    """openai/clip-vit-large-patch14."""
    return CLIPConfig(vision_l14(), text_l14(), projection=768)


def longclip_l14() -> CLIPConfig:
    """LongCLIP-L (BeichenZhang/LongCLIP-L): ViT-L/14 with 248 text positions."""
    return CLIPConfig(vision_l14(), dataclasses.replace(text_l14(), positions=248), projection=768)


def tiny() -> CLIPConfig:
    """For two CPU cores: 0.40 M parameters, images of 64 pixels, the tokenizer of `uae_jax.tiny`."""
    vision = CLIPVisionConfig(width=64, hidden=256, depth=4, heads=4, image_size=64, patch_size=8, projection=64)
    text = CLIPTextConfig(width=64, hidden=128, depth=3, heads=4, vocab=1152, eos_token_id=1151, projection=64)
    return CLIPConfig(vision, text, projection=64)


def tiny_longclip() -> CLIPConfig:
    """`tiny` with LongCLIP's text positions."""
    return CLIPConfig(tiny().vision, dataclasses.replace(tiny().text, positions=248), projection=64)


def tiny_text_encoder() -> CLIPTextConfig:
    """Stands where SD3's text encoders stand, which only give one constant vector; their words are never read."""
    return CLIPTextConfig(width=32, hidden=64, depth=1, heads=1, vocab=64, positions=16, eos_token_id=63, projection=32)


_TOWER = r"((vision|text)/)?"  # the same rules serve a tower alone and both together

LOGICAL_AXES = LogicalAxes(
    (_TOWER + r"layers/attn/[qkv]/kernel", ("embed", "heads", None)),
    (_TOWER + r"layers/attn/[qkv]/bias", ("heads", None)),
    (_TOWER + r"layers/attn/out/kernel", ("heads", "embed")),
    (_TOWER + r"layers/mlp/up/kernel", ("embed", "mlp")),
    (_TOWER + r"layers/mlp/up/bias", ("mlp",)),
    (_TOWER + r"layers/mlp/down/kernel", ("mlp", "embed")),
    (_TOWER + r"layers/(attn/out|mlp/down)/bias", (None,)),
    (_TOWER + r"layers/norm[12]/(scale|bias)", (None,)),
    (_TOWER + r"norm_(pre|post)/(scale|bias)", (None,)),
    (_TOWER + r"patch/kernel", (None, "embed")),
    (_TOWER + r"class_token", (None,)),
    (_TOWER + r"tokens", ("vocab", "embed")),
    (_TOWER + r"positions", (None, "embed")),
    (_TOWER + r"projection/kernel", ("embed", None)),
    (r"logit_scale", ()),
)


class Attention(nn.Module):
    """Multi-head self-attention."""

    config: TowerConfig
    causal: bool
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, T, D] -> [B, T, D]
        cfg, run = self.config, self.runtime
        features = (cfg.heads, cfg.width // cfg.heads)
        q, k, v = (Linear(features, runtime=run, name=name)(x) for name in "qkv")  # [B, T, N, K]
        y = attention(q, k, v, causal=self.causal, kernel=run.attention)
        out = Linear(cfg.width, runtime=run, kernel_init=residual_init(cfg.depth), name="out")
        return out(y.reshape(x.shape))


class MLP(nn.Module):
    """Linear, activation, linear."""

    config: TowerConfig
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, T, D] -> [B, T, D]
        cfg, run = self.config, self.runtime
        y = Linear(cfg.hidden, runtime=run, name="up")(x)  # [B, T, F]
        y = ACTIVATIONS[cfg.activation](constrain(y, "batch", "length", "act_mlp"))
        return Linear(cfg.width, runtime=run, kernel_init=residual_init(cfg.depth), name="down")(y)


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer; carries its input along, so that the last one's input survives the scan."""

    config: TowerConfig
    causal: bool
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, carry: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        cfg, run = self.config, self.runtime
        x, _ = carry  # [B, T, D]
        before = x
        x = x + Attention(cfg, self.causal, run, name="attn")(layer_norm(run, cfg.epsilon, name="norm1")(x))
        x = x + MLP(cfg, run, name="mlp")(layer_norm(run, cfg.epsilon, name="norm2")(x))
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "hidden", x)
        return (x, before), None


def _encode(x: Array, config: TowerConfig, causal: bool, runtime: Runtime) -> tuple[Array, Array]:
    """Runs all layers of the module that calls it; returns the last one's output and its input, [B, T, D] each."""
    x = constrain(x, "batch", "length", None)
    stack = scan_layers(EncoderLayer, config.depth, runtime)(config, causal, runtime, name="layers")
    (x, before), _ = stack((x, x))
    return x, before


def _project(pooled: Array, config: TowerConfig, runtime: Runtime) -> Array:  # [B, D] -> [B, E or D]
    if config.projection is None:
        return pooled
    return Linear(config.projection, use_bias=False, runtime=runtime, name="projection")(pooled)


class CLIPVision(nn.Module):
    """The image tower."""

    config: CLIPVisionConfig
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, dict[str, Array]]:
        """Describes images.

        Args:
          images: f[B, H, W, 3], normalised with CLIP's mean and standard deviation.

        Returns:
          f[B, E] projected features, not normalised (without projection: "pooled"), and
          "hidden" f[B, T, D] after the last layer, "penultimate" f[B, T, D] before it, and
          "pooled" f[B, D], the class token after the final norm.

        Raises:
          ValueError: if the images are not of the config's size.
        """
        cfg, run = self.config, self.runtime
        wanted = (cfg.image_size, cfg.image_size, 3)
        if images.ndim != 4 or images.shape[1:] != wanted:
            raise ValueError(
                f"images have shape {images.shape}, wanted [B, {cfg.image_size}, {cfg.image_size}, 3]; "
                f"resize and crop them to the tower's size first"
            )
        x = patches(images, cfg.patch_size).reshape(images.shape[0], cfg.tokens - 1, -1)
        x = Linear(cfg.width, use_bias=False, runtime=run, name="patch")(x)  # [B, T-1, D]
        normal = nn.initializers.normal(cfg.width**-0.5)
        token = self.param("class_token", normal, (cfg.width,), run.param_dtype)
        positions = self.param("positions", normal, (cfg.tokens, cfg.width), run.param_dtype)
        token = jnp.broadcast_to(token.astype(run.dtype), (x.shape[0], 1, cfg.width))
        x = jnp.concatenate([token, x], axis=1) + positions.astype(run.dtype)  # [B, T, D]
        x = layer_norm(run, cfg.epsilon, name="norm_pre")(x)
        x, penultimate = _encode(x, cfg, False, run)
        pooled = layer_norm(run, cfg.epsilon, name="norm_post")(x[:, 0])
        features = _project(pooled, cfg, run)
        return features, {"hidden": x, "penultimate": penultimate, "pooled": pooled}


class CLIPText(nn.Module):
    """The text tower. Causal, so what follows the end token, padding for one, does not reach the features."""

    config: CLIPTextConfig
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, tokens: Array) -> tuple[Array, dict[str, Array]]:
        """Describes texts.

        Args:
          tokens: i32[B, T], with start and end tokens, padded on the right.

        Returns:
          f[B, E] projected features, not normalised (without projection: "pooled"), and
          "hidden" f[B, T, D] after the final norm, "penultimate" f[B, T, D] before the last layer (what Stable
          Diffusion conditions on), and "pooled" f[B, D], "hidden" at the end token.

        Raises:
          ValueError: if the texts are longer than the position table.
        """
        cfg, run = self.config, self.runtime
        length = tokens.shape[-1]
        if length > cfg.positions:
            raise ValueError(f"text has {length} tokens, wanted at most {cfg.positions}; truncate it when tokenising")
        table = self.param("tokens", nn.initializers.normal(0.02), (cfg.vocab, cfg.width), run.param_dtype)
        positions = self.param("positions", nn.initializers.normal(0.01), (cfg.positions, cfg.width), run.param_dtype)
        x = jnp.take(table, tokens, axis=0).astype(run.dtype) + positions[:length].astype(run.dtype)  # [B, T, D]
        x, penultimate = _encode(x, cfg, True, run)
        x = layer_norm(run, cfg.epsilon, name="norm_post")(x)
        end = jnp.argmax(tokens if cfg.eos_token_id == LEGACY_EOS else tokens == cfg.eos_token_id, axis=-1)  # [B]
        pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        features = _project(pooled, cfg, run)
        return features, {"hidden": x, "penultimate": penultimate, "pooled": pooled}


class CLIP(nn.Module):
    """Both towers and the temperature. `method="encode_image"` or `"encode_text"` runs one tower alone."""

    config: CLIPConfig
    runtime: Runtime = Runtime()

    def setup(self):
        self.vision = CLIPVision(self.config.vision, self.runtime)
        self.text = CLIPText(self.config.text, self.runtime)
        # exp(2.6592) = 1 / 0.07, the published initial temperature.
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), (), self.runtime.param_dtype)

    def encode_image(self, images: Array) -> tuple[Array, dict[str, Array]]:
        """See `CLIPVision`."""
        return self.vision(images)

    def encode_text(self, tokens: Array) -> tuple[Array, dict[str, Array]]:
        """See `CLIPText`."""
        return self.text(tokens)

    def __call__(self, images: Array, tokens: Array) -> tuple[Array, dict[str, Array]]:
        """Compares every image with every text.

        Args:
          images: f[I, H, W, 3].
          tokens: i32[S, T].

        Returns:
          f32[I, S] cosine similarities times exp(logit_scale), and the unit vectors that they come from,
          "image" f32[I, E] and "text" f32[S, E].
        """
        image, text = (_unit(features) for features in (self.vision(images)[0], self.text(tokens)[0]))
        cosine = jnp.einsum("ie,se->is", image, text)
        return jnp.exp(self.logit_scale.astype(jnp.float32)) * cosine, {"image": image, "text": text}


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def interpolate_positions(table: Array, keep: int = 20, factor: int = 4) -> Array:
    """Stretches a position table the way LongCLIP was initialised from CLIP (arXiv 2403.15378).

    The first `keep` positions, which CLIP has trained well, stay. Each of the others is followed by `factor` - 1 new
    ones on the line to its right neighbour; the last goes on along the line from its left one.

    Args:
      table: f[P, D].
      keep: positions that stay as they are, less than P.
      factor: how many positions each of the others becomes.

    Returns:
      f[keep + factor (P - keep), D] in the dtype of `table`; [77, D] becomes [248, D].

    Raises:
      ValueError: if `keep` or `factor` is out of range.
    """
    length = table.shape[0]
    if length < 2 or not 0 <= keep < length or factor < 1:
        raise ValueError(
            f"table has {length} positions, keep is {keep} and factor {factor}, "
            f"wanted at least 2 positions, 0 <= keep < {length} and factor >= 1"
        )
    full = table.astype(jnp.float32)
    beyond = 2 * full[-1:] - full[-2:-1]
    left = full[keep:, None]  # [P - keep, 1, D]
    right = jnp.concatenate([full[keep + 1 :], beyond])[:, None]
    share = (jnp.arange(factor, dtype=jnp.float32) / factor)[:, None]  # [factor, 1]
    stretched = ((1 - share) * left + share * right).reshape(-1, table.shape[1])
    return jnp.concatenate([table[:keep], stretched.astype(table.dtype)])


def vision_inputs(config: CLIPVisionConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The smallest inputs that the image tower's `init` accepts."""
    return (jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), "float32"),)


def text_inputs(config: CLIPTextConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The smallest inputs that the text tower's `init` accepts."""
    del config
    return (jax.ShapeDtypeStruct((1, 1), "int32"),)


def example_inputs(config: CLIPConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The smallest inputs that the `init` of both towers together accepts."""
    return (*vision_inputs(config.vision), *text_inputs(config.text))

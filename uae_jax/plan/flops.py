"""Floating-point operations of every architecture, in closed form: what matrix products and convolutions take.

A product of [M, K] and [K, N] counts 2 M K N. Elementwise work, norms and softmax are left out: they are bound by
memory, not by arithmetic. Work in attention is kept apart from work in weights, since the two have other factors on the
way back and other efficiency.

Letters as in the models: D width, T tokens, P patches, L layers.
"""

import dataclasses
from typing import Any, Literal

from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.models.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from uae_jax.models.dinov2 import DINOv2Config
from uae_jax.models.projector import ProjectorConfig
from uae_jax.models.qwen2_5_vl.config import TextConfig, VisionConfig
from uae_jax.models.sd3 import MLP_RATIO, TIME_CHANNELS, SD3Config

Mode = Literal["frozen", "lora", "full"]


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations.

    Attributes:
      linear: products with weights, convolutions included.
      attention: of queries with keys and of probabilities with values.
    """

    linear: float = 0.0
    attention: float = 0.0

    @property
    def total(self) -> float:
        return self.linear + self.attention

    def __add__(self, other: "Work") -> "Work":
        return Work(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: float) -> "Work":
        return Work(self.linear * times, self.attention * times)

    __rmul__ = __mul__


@dataclasses.dataclass(frozen=True)
class Backward:
    """How often a forward pass is paid for where a gradient flows through it.

    Attributes:
      mode: of the tower: "full" needs the gradients of weights and activations, "lora" and "frozen" of activations.
      remat: what is computed again: "none", "dots" (attention only), "full".
      flash: whether attention recomputes its logits on the way back, which makes that 2.5 times the way there.
      recomputed: further forward passes, of a checkpoint around all of the model.
    """

    mode: Mode
    remat: str = "none"
    flash: bool = True
    recomputed: int = 0

    @property
    def linear(self) -> float:
        back = 2 if self.mode == "full" else 1
        return 1 + back + (self.remat == "full") + self.recomputed

    @property
    def attention(self) -> float:
        return 1 + (2.5 if self.flash else 2) + (self.remat != "none") + self.recomputed

    def of(self, work: Work, adapter: float = 0.0) -> Work:
        """Work of forward and backward together.

        Args:
          work: of a forward pass, the adapter left out.
          adapter: operations of an adapter that is trained, over those of the weights.
        """
        adapters = Backward("full", self.remat, self.flash, self.recomputed).linear
        return Work(work.linear * (self.linear + adapter * adapters), work.attention * self.attention)


def attention(queries: float, keys: float, width: int, *, causal: bool = False) -> float:
    """Of one layer: 4 T S D, or half of it where flash kernels skip what is not seen."""
    return 4 * queries * keys * width * (0.5 if causal else 1.0)


def sd3_denoise(config: SD3Config, patches: int, tokens: int) -> Work:
    """`SD3Transformer.denoise` of one image: without the modulation."""
    d, both = config.width, patches + tokens
    layer = 2 * both * (4 + 2 * MLP_RATIO) * d * d
    # The last layer reads keys and values of the text only.
    last = 2 * d * d * (patches * (4 + 2 * MLP_RATIO) + tokens * 2)
    dual = len(config.dual_attention_layers)
    squares = config.patch_size**2
    ends = 2 * d * (patches * squares * (config.in_channels + config.out_channels) + tokens * config.context_dim)
    linear = (config.num_layers - 1) * layer + last + ends + dual * 2 * patches * 4 * d * d
    seen = (config.num_layers - 1) * attention(both, both, d) + attention(patches, both, d)
    return Work(linear, seen + dual * attention(patches, patches, d))


def sd3_modulation(config: SD3Config) -> Work:
    """`SD3Transformer.modulation` of one timestep."""
    d, dual = config.width, len(config.dual_attention_layers)
    vectors = (config.num_layers - 1) * 12 + 8 + 2 + 3 * dual  # of width D, made of one of width D
    return Work(2 * d * (vectors * d + TIME_CHANNELS + config.pooled_dim + 2 * d))


def text_layers(config: TextConfig, tokens: float, flash: bool = True) -> Work:
    """The language model's layers over one row, all tokens at once, without the head."""
    per_token = 2 * config.depth * text_layer_weights(config)
    return Work(per_token * tokens, config.depth * attention(tokens, tokens, config.width, causal=flash))


def text_layer_weights(config: TextConfig) -> int:
    """Weights in the matrices of one layer."""
    kv = config.kv_heads * config.head_width
    return config.width * (2 * config.width + 2 * kv + 3 * config.intermediate)


def text_head(config: TextConfig, tokens: float) -> Work:
    """Logits of so many tokens."""
    return Work(2 * tokens * config.width * config.vocab)


def text_decode(config: TextConfig, prompt: int, new: int) -> Work:
    """All tokens of one answer behind a prompt, one by one, the head included; the first comes with the prompt."""
    slots = prompt + new  # all of them are looked at each time
    layers = 2 * config.depth * text_layer_weights(config) * (new - 1)
    head = text_head(config, new)
    return Work(layers, config.depth * attention(new - 1, slots, config.width)) + head


def vision(config: VisionConfig, patches: int, windows: int) -> Work:
    """The encoder's vision tower over one image.

    Args:
      config: sizes.
      patches: of the image.
      windows: that hold them; attention in windows pays for empty places.
    """
    d, full = config.width, len(config.full_attention_layers)
    layer = 2 * patches * d * (4 * d + 3 * config.intermediate)
    merged = patches / config.patches_per_token
    wide = d * config.patches_per_token
    ends = 2 * patches * config.patch_width * d + 2 * merged * wide * (wide + config.out_width)
    size = config.window_patches
    seen = full * attention(patches, patches, d) + (config.depth - full) * windows * attention(size, size, d)
    return Work(config.depth * layer + ends, seen)


def projector(config: ProjectorConfig, tokens: int) -> Work:
    return Work(2 * tokens * config.hidden * (config.width + config.out))


def vae_encode(config: AutoencoderKLConfig, height: int, width: int) -> Work:
    """`AutoencoderKL.encode` of one image of so many pixels."""
    c, pixels = config.block_out_channels, height * width
    linear = _conv(pixels, config.in_channels, c[0])
    before = c[0]
    for number, channels in enumerate(c):
        linear += _residuals(pixels, before, channels, config.layers_per_block)
        before = channels
        if number < len(c) - 1:
            pixels //= 4
            linear += _conv(pixels, channels, channels)
    out = 2 * config.latent_channels
    linear += _conv(pixels, c[-1], out) + config.use_quant_conv * 2 * pixels * out * out
    return Work(linear) + _middle(config, pixels)


def vae_decode(config: AutoencoderKLConfig, height: int, width: int) -> Work:
    """`AutoencoderKL.decode` to one image of so many pixels, in one tile."""
    c = config.block_out_channels
    pixels = height * width // config.downsampling**2
    z = config.latent_channels
    linear = _conv(pixels, z, c[-1]) + config.use_post_quant_conv * 2 * pixels * z * z
    total = Work(linear) + _middle(config, pixels)
    before = c[-1]
    for number, channels in enumerate(reversed(c)):
        total += Work(_residuals(pixels, before, channels, config.layers_per_block + 1))
        before = channels
        if number < len(c) - 1:
            pixels *= 4
            total += Work(_conv(pixels, channels, channels))
    return total + Work(_conv(pixels, c[0], config.out_channels))


def _conv(pixels: int, inputs: int, outputs: int, window: int = 9) -> float:
    return 2 * pixels * window * inputs * outputs


def _residuals(pixels: int, inputs: int, outputs: int, count: int) -> float:
    first = _conv(pixels, inputs, outputs) + _conv(pixels, outputs, outputs)
    shortcut = _conv(pixels, inputs, outputs, 1) if inputs != outputs else 0
    return first + shortcut + (count - 1) * 2 * _conv(pixels, outputs, outputs)


def _middle(config: AutoencoderKLConfig, pixels: int) -> Work:
    width = config.block_out_channels[-1]
    work = Work(_residuals(pixels, width, width, 2))
    if not config.mid_block_add_attention:
        return work
    return work + Work(2 * pixels * 4 * width * width, attention(pixels, pixels, width))


def image_features(config: Any, side: int) -> Work:
    """A scorer's features of one image of side x side pixels: CLIP's vision tower, DINOv2 or DINOv3."""
    config = config.vision if isinstance(config, CLIPConfig) else config
    patches = (side // config.patch_size) ** 2
    embedded = 2 * patches * config.patch_size**2 * 3 * config.width
    if isinstance(config, CLIPVisionConfig):
        projected = 2 * config.width * (config.projection or 0)
        return Work(embedded + projected) + _layers(config.depth, config.width, config.hidden, patches + 1)
    extra = 1 + (config.registers or 0)
    gated = config.swiglu if isinstance(config, DINOv2Config) else config.gated
    depth = config.layers if isinstance(config, DINOv2Config) else config.depth
    return Work(embedded) + _layers(depth, config.width, config.hidden, patches + extra, gated)


def clip_text(config: CLIPTextConfig, tokens: int) -> Work:
    """CLIP's text tower over one text."""
    layers = _layers(config.depth, config.width, config.hidden, tokens)
    return Work(layers.linear + 2 * config.width * (config.projection or 0), layers.attention)


def _layers(depth: int, width: int, hidden: int, tokens: int, gated: bool = False) -> Work:
    weights = width * (4 * width + (3 if gated else 2) * hidden)
    return depth * Work(2 * tokens * weights, attention(tokens, tokens, width))

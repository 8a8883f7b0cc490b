"""Sizes of Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923), as the published `config.json` files state them."""

import dataclasses

from uae_jax.models.layers import ACTIVATIONS


def _check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation is {name!r}, wanted one of {', '.join(ACTIVATIONS)}")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower.

    Attributes:
      depth, width, heads, intermediate: of its layers.
      out_width: of the merged tokens; equals the language model's width.
      channels, patch_size, temporal_patch_size: of one patch; a still image is repeated `temporal_patch_size` times.
      merge_size: side of the square of patches that becomes one token.
      window_size: side of an attention window, in pixels.
      full_attention_layers: numbers of the layers that attend over the whole image; the others attend in windows.
      activation: name in `ACTIVATIONS`.
      rope_theta: base of the rotary frequencies.
      tokens_per_second: video only; kept for the published config.
    """

    depth: int = 32
    width: int = 1280
    heads: int = 16
    intermediate: int = 3420
    out_width: int = 2048
    channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    window_size: int = 112
    full_attention_layers: tuple[int, ...] = (7, 15, 23, 31)
    activation: str = "silu"
    rope_theta: float = 10_000.0
    tokens_per_second: int = 2

    def __post_init__(self):
        _check_activation(self.activation)
        if self.width % (4 * self.heads):
            raise ValueError(
                f"vision width {self.width} with {self.heads} heads: the head width must be a multiple of 4, since "
                f"rows and columns each turn half of it in pairs"
            )
        if self.window_side < 1:
            raise ValueError(
                f"vision window of {self.window_size} pixels is smaller than one merged token "
                f"({self.merge_size * self.patch_size} pixels)"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def patch_width(self) -> int:
        """Numbers in one flattened patch."""
        return self.channels * self.temporal_patch_size * self.patch_size**2

    @property
    def patches_per_token(self) -> int:
        return self.merge_size**2

    @property
    def window_side(self) -> int:
        """Side of a window, in merged tokens."""
        return self.window_size // self.merge_size // self.patch_size

    @property
    def window_patches(self) -> int:
        """Patches in a full window."""
        return self.window_side**2 * self.patches_per_token


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the language model.

    Attributes:
      vocab: rows of the embedding table.
      width, depth, heads, kv_heads, intermediate: of its layers.
      activation: name in `ACTIVATIONS`.
      rope_theta: base of the rotary frequencies.
      mrope_section: how many frequencies turn by time, by row and by column, in turn; half a head's width together.
      epsilon: of the RMS norms.
      max_positions: the longest context it is published for. Not enforced here.
    """

    vocab: int = 151_936
    width: int = 2048
    depth: int = 36
    heads: int = 16
    kv_heads: int = 2
    intermediate: int = 11_008
    activation: str = "silu"
    rope_theta: float = 1_000_000.0
    mrope_section: tuple[int, ...] = (16, 24, 24)
    epsilon: float = 1e-6
    max_positions: int = 128_000

    def __post_init__(self):
        _check_activation(self.activation)
        if self.width % (2 * self.heads):
            raise ValueError(f"text width {self.width} with {self.heads} heads: wanted an even head width")
        if self.heads % self.kv_heads:
            raise ValueError(f"text model has {self.heads} heads, wanted a multiple of its {self.kv_heads} kv heads")
        if sum(self.mrope_section) != self.head_width // 2:
            raise ValueError(
                f"mrope_section {self.mrope_section} sums to {sum(self.mrope_section)}, "
                f"wanted {self.head_width // 2}, half the head width"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class Qwen2_5_VLConfig:
    """Sizes of the whole model and the tokens that mean something to it."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    tie_word_embeddings: bool = True
    image_token_id: int = 151_655
    video_token_id: int = 151_656
    vision_start_token_id: int = 151_652
    vision_end_token_id: int = 151_653
    bos_token_id: int | None = 151_643
    eos_token_id: int | tuple[int, ...] | None = 151_645
    pad_token_id: int | None = None

    def __post_init__(self):
        if self.vision.out_width != self.text.width:
            raise ValueError(f"vision out_width {self.vision.out_width}, wanted the text width {self.text.width}")


def qwen2_5_vl_3b() -> Qwen2_5_VLConfig:
    """https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/config.json."""
    return Qwen2_5_VLConfig()


def qwen2_5_vl_7b() -> Qwen2_5_VLConfig:
    """https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct/blob/main/config.json."""
    return Qwen2_5_VLConfig(
        vision=VisionConfig(out_width=3584),
        text=TextConfig(vocab=152_064, width=3584, depth=28, heads=28, kv_heads=4, intermediate=18_944),
        tie_word_embeddings=False,
    )


def small() -> Qwen2_5_VLConfig:
    """0.2 B parameters, for one accelerator and from scratch, with the tokens of `tiny`."""
    small_tokens = tiny()
    return dataclasses.replace(
        small_tokens,
        vision=VisionConfig(
            depth=12, width=512, heads=8, intermediate=1408, out_width=1024, full_attention_layers=(2, 5, 8, 11)
        ),
        text=TextConfig(
            vocab=small_tokens.text.vocab,
            width=1024,
            depth=16,
            heads=16,
            kv_heads=4,
            intermediate=2816,
            rope_theta=10_000.0,
            mrope_section=(8, 12, 12),
            max_positions=8192,
        ),
    )


def tiny() -> Qwen2_5_VLConfig:
    """For two CPU cores: 1.6 M parameters; 64x64 pixels are 64 patches, 16 tokens, 4 windows.

    The vision tower knows relative places only, so that where something stands is told by M-RoPE alone. With the
    published section sizes and base, a head this narrow would turn columns by no more than a thousandth: so the
    sections alternate, and the base is low. The tokens are those of the tokenizer of `uae_jax.tiny`, special ones last,
    in the published order.
    """
    return Qwen2_5_VLConfig(
        vision=VisionConfig(
            depth=4,
            width=96,
            heads=3,
            intermediate=192,
            out_width=128,
            patch_size=8,
            window_size=32,
            full_attention_layers=(1, 3),
        ),
        text=TextConfig(
            vocab=1024,
            width=128,
            depth=5,
            heads=4,
            kv_heads=2,
            intermediate=320,
            rope_theta=1000.0,
            mrope_section=(1, 1, 1, 1, 1, 1, 4, 3, 3),
            max_positions=2048,
        ),
        image_token_id=1014,
        video_token_id=1015,
        vision_start_token_id=1011,
        vision_end_token_id=1012,
        bos_token_id=1002,
        eos_token_id=1004,
        pad_token_id=1002,
    )

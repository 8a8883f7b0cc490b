"""Small Qwen2.5-VL originals and prompts for them, shared by this family's tests."""

import dataclasses
import functools

import jax
import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.parity import randomise
from uae_jax.models.qwen2_5_vl import ImagePatches, image_index, mrope_positions, pack_images

# Compiling takes longer than running here, so ask for the function and not for its speed.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

IMAGE, VIDEO, START, END, PAD = 90, 91, 92, 93, 94
SPECIAL = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}

TEXT = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
CONFIGS = {
    # Two query heads per key; windows of 2x2 tokens, cut at the edges; full attention in the middle layer only.
    "tied": {
        "tie_word_embeddings": True,
        "text_config": {
            **TEXT,
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        "vision_config": {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
    },
    # One key head for six query heads; full attention first and last; large windows; other activations and epsilon.
    "untied": {
        "tie_word_embeddings": False,
        "text_config": {
            **TEXT,
            "vocab_size": 101,
            "hidden_size": 48,
            "intermediate_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 1,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-5,
            "eos_token_id": [2, 3],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        "vision_config": {
            "depth": 4,
            "hidden_size": 24,
            "intermediate_size": 20,
            "num_heads": 3,
            "out_hidden_size": 48,
            "patch_size": 2,
            "temporal_patch_size": 1,
            "window_size": 12,
            "fullatt_block_indexes": [0, 3],
            "hidden_act": "gelu_pytorch_tanh",
        },
    },
    # As many key heads as query heads; the published patch and window; no layer with full attention; one odd layer.
    "windows": {
        "tie_word_embeddings": False,
        "text_config": {
            **TEXT,
            "vocab_size": 96,
            "hidden_size": 48,
            "intermediate_size": 28,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 12,
            "num_heads": 1,
            "out_hidden_size": 48,
            "fullatt_block_indexes": [],
        },
    },
}

# Of each row: two unequal images that are not square, with cut windows; one image; none.
GRIDS = [[(1, 6, 4), (1, 2, 10)], [(1, 8, 6)], []]


def original(name: str, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Makes a random model; its weights are large enough for attention to prefer some keys over others."""
    torch.manual_seed(seed)
    return randomise(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**SPECIAL, **CONFIGS[name])), seed, std=0.15)


@dataclasses.dataclass
class Prompts:
    """One batch for both models; arrays of `grids` and `pixels` are per row."""

    tokens: np.ndarray
    valid: np.ndarray
    grids: list
    pixels: list

    def for_torch(self) -> dict[str, torch.Tensor]:
        """The arguments of the original's forward."""
        tokens = torch.tensor(self.tokens)
        inputs = {"input_ids": tokens, "attention_mask": torch.tensor(self.valid).long()}
        if any(self.grids):
            inputs["pixel_values"] = torch.tensor(np.concatenate([p for p in self.pixels if len(p)]))
            inputs["image_grid_thw"] = torch.tensor([grid for row in self.grids for grid in row])
            inputs["mm_token_type_ids"] = (tokens == IMAGE).int()
        return inputs

    def for_jax(self, config, *, pad_positions: str = "ones", **padding: int) -> tuple:
        """tokens, positions, segment_ids, images, image_index."""
        positions, _ = mrope_positions(self.tokens, self.grids, self.valid, config, pad_positions=pad_positions)
        text = (self.tokens.astype(np.int32), positions, self.valid.astype(np.int32))
        if not any(self.grids):
            return (*text, None, None)
        images = self.images(config, **padding)
        return (*text, images, image_index(self.tokens, self.grids, config))

    def images(self, config, **padding: int) -> ImagePatches:
        return pack_images(self.pixels, self.grids, config.vision, **padding)


def prompts(config, grids=GRIDS, *, side: str = "right", seed: int = 0, vocab: int = 90) -> Prompts:
    """Makes rows of random text around their images, of unequal length, padded on one side.

    Args:
      config: our config.
      grids: the images of each row.
      side: of the padding, "left" or "right".
      seed: of tokens and pixels.
      vocab: text tokens are below this.
    """
    rng = np.random.default_rng(seed)
    rows, pixels = [], []
    for number, images in enumerate(grids):
        row = list(rng.integers(5, vocab, 3 + 2 * number))
        for _, height, width in images:
            count = height * width // config.vision.patches_per_token
            row += [START, *[config.image_token_id] * count, END, *rng.integers(5, vocab, 2)]
        rows.append(row)
        count = sum(h * w for _, h, w in images)
        pixels.append(rng.normal(size=(count, config.vision.patch_width)).astype(np.float32))
    length = max(map(len, rows)) + 2
    tokens, valid = np.full((len(rows), length), PAD), np.zeros((len(rows), length), bool)
    for b, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        tokens[b, place], valid[b, place] = row, True
    return Prompts(tokens, valid, grids, pixels)

"""From an image to the flattened patches that Qwen2.5-VL's vision tower takes, as the published processor makes them.

The published processor class is not used because it needs PyTorch's vision package in some versions and another class
name in others; the arithmetic is short, and a test holds it to the original.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

# Per-channel statistics of CLIP's training images, on a scale of 0 to 1 (Radford et al. 2021).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class VisionInputConfig:
    """How images are resized and cut.

    Attributes:
      patch: side of a patch in pixels.
      temporal: frames per patch; an image is repeated as often.
      merge: merge x merge patches become one token.
      min_pixels, max_pixels: an image is scaled so that its area lies between them.
      mean, std: per channel, on a scale of 0 to 1.
    """

    patch: int = 14
    temporal: int = 2
    merge: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


def config_from_json(value: dict) -> VisionInputConfig:
    """Reads a published `preprocessor_config.json`.

    Raises:
      ValueError: on a processor that does something else; names the setting.
    """
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not value.get(name, True):
            raise ValueError(f"preprocessor_config.json: {name} is false, wanted true")
    if value.get("resample", Image.Resampling.BICUBIC) != Image.Resampling.BICUBIC:
        raise ValueError(f"preprocessor_config.json: resample is {value['resample']}, wanted 3 (bicubic)")
    default = VisionInputConfig()
    size = value.get("size") or {}
    return VisionInputConfig(
        patch=value.get("patch_size", default.patch),
        temporal=value.get("temporal_patch_size", default.temporal),
        merge=value.get("merge_size", default.merge),
        min_pixels=value.get("min_pixels") or size.get("shortest_edge") or default.min_pixels,
        max_pixels=value.get("max_pixels") or size.get("longest_edge") or default.max_pixels,
        mean=tuple(value.get("image_mean", default.mean)),
        std=tuple(value.get("image_std", default.std)),
    )


def smart_resize(height: int, width: int, config: VisionInputConfig) -> tuple[int, int]:
    """The size an image is scaled to: sides in whole tokens, area within the limits, shape as near as that allows.

    Raises:
      ValueError: if one side is more than 200 times the other.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"image is {width}x{height}, wanted sides of at most 200 to 1")
    unit = config.patch * config.merge
    h, w = (round(side / unit) * unit for side in (height, width))
    if h * w > config.max_pixels:
        shrink = math.sqrt(height * width / config.max_pixels)
        h, w = (max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))
    elif h * w < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (height * width))
        h, w = (math.ceil(side * grow / unit) * unit for side in (height, width))
    return h, w


def image_patches(image: Image.Image, config: VisionInputConfig) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Resizes, normalises and cuts one image.

    Args:
      image: RGB.
      config: sizes and statistics.

    Returns:
      (f32[h w, 3 * temporal * patch * patch] patches, in blocks of merge x merge, each flattened as (channel, frame,
      row, column); (1, h, w) the grid of patches).
    """
    h, w = smart_resize(image.height, image.width, config)
    resized = image if image.size == (w, h) else image.resize((w, h), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, np.float32) / 255
    pixels = (pixels - np.float32(config.mean)) / np.float32(config.std)
    p, m = config.patch, config.merge
    rows, columns = h // p, w // p
    blocks = pixels.reshape(rows // m, m, p, columns // m, m, p, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    frames = np.repeat(blocks[:, :, :, :, :, None], config.temporal, axis=5)  # [R, C, m, m, 3, frame, p, p]
    return frames.reshape(rows * columns, -1), (1, rows, columns)

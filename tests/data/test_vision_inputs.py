"""Image patches against the published processor."""

import numpy as np
import pytest
from PIL import Image

from uae_jax.data import vision_inputs


def picture(width, height, seed=0):
    """A smooth picture with some noise, so that resampling matters and clipping happens."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = 127 + 120 * np.stack([np.sin(x / 9 + y / 31), np.cos(x / 23), np.sin(y / 5)], -1)
    return Image.fromarray(np.clip(base + rng.normal(0, 30, base.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(224, 224), (301, 97), (40, 33), (1500, 1100), (64, 640)])
@pytest.mark.parametrize("max_pixels", [65_536, 28 * 28 * 1280])
def test_patches_are_those_of_the_published_processor(size, max_pixels):
    transformers = pytest.importorskip("transformers")
    processor = transformers.models.qwen2_vl.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 56 * 56, "longest_edge": max_pixels}
    )
    image = picture(*size)
    wanted = processor(images=[image], return_tensors="np")
    config = vision_inputs.config_from_json(processor.to_dict())
    assert config.max_pixels == max_pixels
    patches, grid = vision_inputs.image_patches(image, config)
    assert list(grid) == wanted["image_grid_thw"][0].tolist()
    # Same bytes after resizing; then a float32 division, subtraction and division in another order.
    np.testing.assert_allclose(patches, wanted["pixel_values"], atol=1e-6)


def test_the_published_limit_of_65536_pixels_gives_at_most_83_tokens():
    # 65536 pixels / (28 x 28 per token) = 83.6.
    config = vision_inputs.VisionInputConfig(max_pixels=65_536)
    for size in [(1024, 1024), (640, 480), (2000, 300)]:
        h, w = vision_inputs.smart_resize(*size, config)
        assert h * w // 28**2 <= 83


def test_what_the_processor_cannot_do_is_refused():
    with pytest.raises(ValueError, match="resample is 2, wanted 3"):
        vision_inputs.config_from_json({"resample": 2})
    with pytest.raises(ValueError, match="do_normalize is false"):
        vision_inputs.config_from_json({"do_normalize": False})
    with pytest.raises(ValueError, match="200 to 1"):
        vision_inputs.smart_resize(10, 5000, vision_inputs.VisionInputConfig())

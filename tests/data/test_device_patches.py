"""Cutting images on the device is cutting them on the host."""

import jax
import numpy as np
import pytest
from PIL import Image

from uae_jax.data import device_patches
from uae_jax.data.vision_inputs import VisionInputConfig, image_patches


@pytest.mark.parametrize("size", [(64, 96), (50, 130)], ids=["whole tokens", "resized"])
def test_patches_are_those_of_the_host(size):
    config = VisionInputConfig(patch=8, min_pixels=1, max_pixels=10_000)
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    got = jax.jit(lambda x: device_patches.patches_of(x, config))(device_patches.fitted(images, config))
    wanted = np.stack([image_patches(Image.fromarray(image), config)[0] for image in images])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_images_that_fit_are_not_touched():
    images = np.zeros((1, 64, 64, 3), np.uint8)
    assert device_patches.fitted(images, VisionInputConfig(patch=8, min_pixels=1)) is images

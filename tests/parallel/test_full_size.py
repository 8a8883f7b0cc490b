"""Full-size models on a mesh of eight devices, by shapes alone: what splits, and what a device holds."""

import math

import jax
import pytest
from flax import traverse_util

from uae_jax.models import clip
from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.models.dinov2 import DINOv2Config
from uae_jax.models.dinov3 import DINOv3Config
from uae_jax.models.projector import ProjectorConfig
from uae_jax.models.qwen2_5_vl.config import qwen2_5_vl_3b, qwen2_5_vl_7b
from uae_jax.models.sd3 import SD3Config
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights.registry import ARCHITECTURES

# Of 2 x 2 x 2 devices, parameters split over fsdp and tensor: at best a quarter each. What stays whole are norms,
# biases of the model's width, and in the VAE, whose convolutions split over fsdp only, nothing else: a half.
FULL_SIZE = {
    "qwen2.5-vl-3b": ("Qwen2_5_VLForConditionalGeneration", qwen2_5_vl_3b(), 0.26),
    "qwen2.5-vl-7b": ("Qwen2_5_VLForConditionalGeneration", qwen2_5_vl_7b(), 0.26),
    "sd3.5-large": ("SD3Transformer2DModel", SD3Config.sd35_large(), 0.26),
    "sd3.5-medium": ("SD3Transformer2DModel", SD3Config.sd35_medium(), 0.29),  # its position table is a tenth
    "vae": ("AutoencoderKL", AutoencoderKLConfig.sd3(), 0.52),
    "clip-l": ("CLIPModel", clip.clip_l14(), 0.30),
    "clip-g-text": ("CLIPTextModelWithProjection", clip.text_big_g(), 0.30),
    "dinov2-l": ("Dinov2Model", DINOv2Config.large(), 0.27),
    "dinov3-l": ("DINOv3ViTModel", DINOv3Config.large(), 0.27),
    "projector": ("UAEProjector", ProjectorConfig(), 0.26),
}
LARGE = 1024 * 1024  # numbers; a matrix of at least this many must split both ways if both its sides are wide


def placed(name):
    architecture_name, config, most = FULL_SIZE[name]
    architecture = ARCHITECTURES[architecture_name]
    abstract = architecture.abstract(config)
    axes = architecture.logical_axes.tree(abstract)  # raises unless each parameter matches exactly one pattern
    shards = sharding.shardings(abstract, axes, make_mesh(data=2, fsdp=2, tensor=2))
    flat = (traverse_util.flatten_dict(tree, sep="/") for tree in (abstract, axes, shards))
    return (*flat, most)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_large_dimensions_really_split(name):
    abstract, axes, shards, most = placed(name)
    total = held = 0
    whole = []
    for path, leaf in abstract.items():
        assert len(axes[path]) == len(leaf.shape), path
        local = math.prod(shards[path].shard_shape(leaf.shape))
        total += leaf.size
        held += local
        if leaf.size >= LARGE and local == leaf.size:
            whole.append(path)
    assert not whole, "large parameters that no device splits"
    assert held / total <= most


def test_every_kernel_of_the_two_large_transformers_splits_in_four():
    for name in ("qwen2.5-vl-3b", "sd3.5-large"):
        abstract, _, shards, _ = placed(name)
        for path, leaf in abstract.items():
            if path.endswith("kernel") and "layers" in path:
                assert math.prod(shards[path].shard_shape(leaf.shape)) * 4 == leaf.size, path


def test_a_dimension_that_does_not_divide_stays_whole():
    # Qwen2.5-VL-3B has 2 key/value heads of 128: the flattened 256 splits in 2, and over 8 as numbers, not as heads.
    mesh = make_mesh(tensor=8)
    assert sharding.partition_spec((36, 2048, 254), ("layers", "embed", "kv_heads"), mesh)[2] is None


def test_counts_are_those_of_the_published_models():
    wanted = {
        "qwen2.5-vl-3b": 3_754_622_976,
        "vae": 83_819_683,
        "dinov2-l": 304_368_640,
        "dinov3-l": 303_129_600,
    }
    for name, count in wanted.items():
        architecture_name, config, _ = FULL_SIZE[name]
        leaves = jax.tree.leaves(ARCHITECTURES[architecture_name].abstract(config))
        assert sum(leaf.size for leaf in leaves) == count, name

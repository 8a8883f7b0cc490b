"""SD3 checkpoints: sizes, every byte there and back, and what is refused."""

import json

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding

from tests.models.test_sd3 import CASES, inputs, run_torch, torch_model
from tests.parity import assert_close
from tests.sizes import small_sd3
from uae_jax.models.sd3 import SD3Config
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights.checkpoint import open_checkpoint
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.pretrained import load_pretrained, parameter_count, save_pretrained
from uae_jax.weights.sd3 import ARCHITECTURE, config_from_json, config_to_json

# As published, without the keys that state what diffusers takes anyway.
LARGE_JSON = {
    "_class_name": "SD3Transformer2DModel",
    "_diffusers_version": "0.31.0",
    "attention_head_dim": 64,
    "caption_projection_dim": 2432,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 38,
    "num_layers": 38,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
    "sample_size": 128,
}
MEDIUM_JSON = LARGE_JSON | {
    "caption_projection_dim": 1536,
    "dual_attention_layers": list(range(13)),
    "num_attention_heads": 24,
    "num_layers": 24,
    "pos_embed_max_size": 384,
}
FULL_SIZES = {"large": SD3Config.sd35_large(), "medium": SD3Config.sd35_medium()}


@pytest.mark.parametrize(
    ("config", "parameters", "keys"),
    [(FULL_SIZES["large"], 8_056_627_520, 1227), (FULL_SIZES["medium"], 2_243_171_520, 909)],
    ids=["large", "medium"],
)
def test_full_size_counts(config, parameters, keys):
    abstract = ARCHITECTURE.abstract(config)
    # The position table is a buffer, which torch's `.parameters()` leaves out.
    table = config.pos_embed_max_size**2 * config.width
    assert parameter_count(abstract) - table == parameters
    published = [key for entry in ARCHITECTURE.table(config) for key in entry.keys]
    assert len(published) == len(set(published)) == keys


def test_keys_and_shapes_of_full_sizes_are_those_of_diffusers():
    from uae_jax.weights.transfer import published_shapes

    for config in FULL_SIZES.values():
        options = {key: value for key, value in config_to_json(config).items() if not key.startswith("_")}
        # The table would be computed for real, even on the meta device's model; its shape is clear without.
        with torch.device("meta"):
            model = diffusers.SD3Transformer2DModel(**(options | {"pos_embed_max_size": 1}))
        wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        wanted["pos_embed.pos_embed"] = (1, config.pos_embed_max_size**2, config.width)
        shapes = published_shapes(ARCHITECTURE.table(config), ARCHITECTURE.abstract(config))
        assert {key: shape for key, (shape, _) in shapes.items()} == wanted


@pytest.mark.parametrize("config", FULL_SIZES.values(), ids=FULL_SIZES)
def test_every_parameter_has_axes_and_the_large_ones_split(config):
    abstract = ARCHITECTURE.abstract(config)
    axes = traverse_util.flatten_dict(ARCHITECTURE.logical_axes.tree(abstract), sep="/")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    per_device = 0
    for path, leaf in traverse_util.flatten_dict(abstract, sep="/").items():
        assert len(axes[path]) == leaf.ndim, path
        spec = sharding.partition_spec(leaf.shape, axes[path], mesh)
        parts = leaf.size // int(np.prod(NamedSharding(mesh, spec).shard_shape(leaf.shape)))
        per_device += leaf.size // parts
        one_layer = leaf.size // (leaf.shape[0] if sharding.is_stacked(path) else 1)
        if one_layer >= 2**20:
            # The table has only one wide axis: rows and columns are cropped to the image.
            assert parts == (2 if path == "pos_embed/table" else 4), path
    total = parameter_count(abstract)
    table = config.pos_embed_max_size**2 * config.width
    assert per_device < 1.001 * (total - table) / 4 + table / 2


@pytest.mark.parametrize("case", ["no_qk_norm", "dual", "single"])
def test_published_to_native_to_published_keeps_every_byte(case, tmp_path):
    options, size, tokens = CASES[case]
    model = torch_model(options)
    model.save_pretrained(tmp_path / "a")
    save_pretrained(load_pretrained(tmp_path / "a"), tmp_path / "b")

    first, second = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    assert first.keys() == second.keys() == model.state_dict().keys()
    for key, tensor in first.items():
        assert (tensor.shape, tensor.dtype) == (second[key].shape, second[key].dtype), key
        assert tensor.read().tobytes() == second[key].read().tobytes(), key

    again, info = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info.values()), info
    args = inputs(size, tokens)
    with torch.no_grad():
        assert_close(run_torch(again.eval(), *args), run_torch(model, *args), tolerance=0)


def test_half_precision_and_shards_keep_every_byte(tmp_path):
    # Published checkpoints hold 16-bit tables, which no recomputation in float32 would meet.
    model = torch_model(CASES["plain"][0]).to(torch.bfloat16)
    model.pos_embed.pos_embed += 0.125
    model.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    assert len(list((tmp_path / "a").glob("*-of-*.safetensors"))) > 1
    loaded = load_pretrained(tmp_path / "a")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    save_pretrained(loaded, tmp_path / "b", max_shard_bytes=20_000)
    first, second = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert tensor.read().tobytes() == second[key].read().tobytes(), key


def test_published_configs_are_read():
    assert config_from_json(LARGE_JSON) == SD3Config.sd35_large()
    assert config_from_json(MEDIUM_JSON) == SD3Config.sd35_medium()
    # SD3-medium of 2024 states neither qk_norm nor dual layers.
    medium_2024 = {k: v for k, v in MEDIUM_JSON.items() if k not in ("qk_norm", "dual_attention_layers")}
    got = config_from_json(medium_2024 | {"pos_embed_max_size": 192, "out_channels": None})
    assert (got.qk_norm, got.dual_attention_layers, got.out_channels) == (False, (), 16)
    # Nothing stated: diffusers' own defaults, 18 layers of 18 heads.
    assert config_from_json({}).num_layers == 18 and config_from_json({}).pos_embed_max_size == 96
    for config in (*FULL_SIZES.values(), SD3Config.small(), SD3Config.tiny(), small_sd3(), got):
        text = json.dumps(config_to_json(config))
        assert config_from_json(json.loads(text)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm', wanted one of None, 'rms_norm'"),
        ({"caption_projection_dim": 1152}, "caption_projection_dim is 1152, wanted 2432"),
        ({"pos_embed_max_size": None}, "pos_embed_max_size is None, wanted a positive integer"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_layers": "38"}, "num_layers is '38'"),
        ({"sample_size": 1}, "sample_size is 1, wanted at least patch_size 2"),
        ({"attention_head_dim": 1, "caption_projection_dim": 38}, "is 38, wanted a multiple of 4"),
        ({"dual_attention_layers": [0, 38]}, r"has \[38\], wanted numbers from 0 to 37"),
        ({"dual_attention_layers": 3}, "dual_attention_layers is 3, wanted a list"),
        ({"quantization_config": {}}, "unknown keys quantization_config"),
    ],
)
def test_what_is_not_implemented_is_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        config_from_json(LARGE_JSON | change)

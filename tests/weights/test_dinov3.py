"""DINOv3's files: config.json, both key layouts, round trips, the size of the published model."""

import dataclasses
import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

import jax
import numpy as np
from flax import traverse_util

from tests.models.test_dinov3 import CASES, images, pixels, torch_model
from uae_jax.models.dinov3 import DINOv3Config
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights import registry
from uae_jax.weights.checkpoint import open_checkpoint
from uae_jax.weights.dinov3 import ARCHITECTURE, config_from_json, config_to_json
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.pretrained import load_pretrained, parameter_count, save_pretrained

LARGE_JSON = {  # facebook/dinov3-vitl16-pretrain-lvd1689m
    "architectures": ["DINOv3ViTModel"], "attention_dropout": 0.0, "drop_path_rate": 0.0, "hidden_act": "gelu",
    "hidden_size": 1024, "image_size": 224, "initializer_range": 0.02, "intermediate_size": 4096, "key_bias": False,
    "layer_norm_eps": 1e-05, "layerscale_value": 1.0, "mlp_bias": True, "model_type": "dinov3_vit",
    "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24, "num_register_tokens": 4, "patch_size": 16,
    "pos_embed_jitter": None, "pos_embed_rescale": 2.0, "pos_embed_shift": None, "proj_bias": True, "query_bias": True,
    "rope_theta": 100.0, "torch_dtype": "float32", "transformers_version": "4.56.0.dev0", "use_gated_mlp": False,
    "value_bias": True,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_published_to_native_to_published_keeps_every_byte(case, tmp_path):
    model = torch_model(case)
    model.save_pretrained(tmp_path / "a")
    save_pretrained(load_pretrained(tmp_path / "a"), tmp_path / "b")
    first, second = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    assert first.keys() == second.keys() and "layer.0.norm1.weight" in first
    for key, tensor in first.items():
        assert (tensor.shape, tensor.dtype) == (second[key].shape, second[key].dtype), key
        assert tensor.read().tobytes() == second[key].read().tobytes(), key

    again, info = transformers.DINOv3ViTModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    x = pixels(images(case))
    with torch.no_grad():  # all bytes and options are the same, so is every number
        np.testing.assert_array_equal(again.eval()(x).last_hidden_state, model(x).last_hidden_state)


def test_keys_as_in_memory_load_the_same(tmp_path):
    # transformers 5 holds the layers under "model." and can save them so; its rotary buffer is no parameter.
    model = torch_model("plain")
    model.save_pretrained(tmp_path / "disk")
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    assert "model.layer.0.norm1.weight" in tensors and len(tensors) == len(open_checkpoint(tmp_path / "disk"))
    tensors["rope_embeddings.inv_freq"] = torch.ones(2)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/config.json").write_bytes((tmp_path / "disk/config.json").read_bytes())
    safetensors_torch.save_file(tensors, tmp_path / "memory/model.safetensors", {"format": "pt"})
    one, two = (load_pretrained(tmp_path / name).params for name in ("disk", "memory"))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two)) and jax.tree.leaves(one)
    # Adapters are stored under the names in memory.
    names = {ARCHITECTURE.module_name(key.removesuffix(".weight")) for key in open_checkpoint(tmp_path / "disk")}
    assert {"model.layer.2.attention.q_proj", "embeddings.patch_embeddings"} <= names


def test_full_size():
    # Class, mask and register tokens 6 * 1024, patches 768 * 1024 + 1024, final norm 2 * 1024; a layer has 4 D^2 + 3 D
    # for attention (no bias on keys), 8 D^2 + 5 D for the MLP, 4 D for norms and 2 D for scales: 12597248.
    count = 6 * 1024 + 769 * 1024 + 2 * 1024 + 24 * (12 * 1024**2 + 14 * 1024)
    abstract = ARCHITECTURE.abstract(DINOv3Config.large())
    assert parameter_count(abstract) == count == 303_129_600
    with torch.device("meta"):
        theirs = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig.from_dict(LARGE_JSON))
    assert sum(p.numel() for p in theirs.parameters()) == count
    paths = [entry.path for entry in ARCHITECTURE.table(DINOv3Config.large())]
    assert sorted(paths) == sorted(traverse_util.flatten_dict(abstract, sep="/"))


@pytest.mark.parametrize(
    "config", [DINOv3Config.large(), dataclasses.replace(DINOv3Config.large(), gated=True, key_bias=True)]
)
def test_every_axis_has_a_name_and_wide_matrices_are_split(config):
    abstract = ARCHITECTURE.abstract(config)
    axes = traverse_util.flatten_dict(ARCHITECTURE.logical_axes.tree(abstract), sep="/")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    for path, leaf in traverse_util.flatten_dict(abstract, sep="/").items():
        assert len(axes[path]) == leaf.ndim, path
        spec = sharding.partition_spec(leaf.shape, axes[path], mesh)
        part = jax.sharding.NamedSharding(mesh, spec).shard_shape(leaf.shape)
        if path.startswith("layers/") and path.endswith("kernel"):
            assert np.prod(part) * 4 == leaf.size, path


def test_hub_config_is_the_cited_size():
    assert config_from_json(LARGE_JSON) == DINOv3Config.large()


@pytest.mark.parametrize("case", CASES)
def test_config_json_is_read_and_written_as_by_transformers(case):
    options = CASES[case][0]
    theirs = transformers.DINOv3ViTConfig(**options)
    ours = config_from_json(options)  # transformers' defaults stand in for what is left out
    assert ours == config_from_json(json.loads(theirs.to_json_string()))
    back = transformers.DINOv3ViTConfig.from_dict(json.loads(json.dumps(config_to_json(ours))))
    for key in config_to_json(ours).keys() - {"architectures"}:
        assert getattr(back, key) == getattr(theirs, key), key
    assert config_from_json(config_to_json(ours)) == ours


def test_square_sides_may_be_given_twice():
    config = config_from_json(LARGE_JSON | {"patch_size": [16, 16], "image_size": [224, 224]})
    assert config == DINOv3Config.large()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu', wanted one of gelu"),
        ({"patch_size": [16, 8]}, r"patch_size is \[16, 8\], wanted a positive whole number"),
        ({"num_channels": 4}, "num_channels is 4, wanted 3"),
        ({"drop_path_rate": 0.3}, "drop_path_rate is 0.3, wanted 0"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1, wanted 0"),
        ({"key_bias": 1}, "key_bias is 1, wanted true or false"),
        ({"num_register_tokens": -1}, "num_register_tokens is -1, wanted a whole number"),
        ({"rope_theta": None}, "rope_theta is None, wanted a positive number"),
        ({"hidden_size": 1000}, "width is 1000, wanted a multiple of 64"),
        ({"rope_scaling": {"factor": 2}}, "unknown keys rope_scaling, wanted only attention_dropout"),
        ({"quantization_config": {"bits": 8}}, "unknown keys quantization_config"),
    ],
)
def test_options_that_the_module_lacks_are_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        config_from_json(LARGE_JSON | change)


def test_registered():
    assert registry.find("DINOv3ViTModel") is ARCHITECTURE

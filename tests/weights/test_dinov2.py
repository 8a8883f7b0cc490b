"""DINOv2's config.json and keys: transformers' folders in both layouts in, transformers' folders out."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import json

import jax
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from tests.parity import assert_close, randomise
from uae_jax.models.dinov2 import DINOv2Config
from uae_jax.weights.checkpoint import open_checkpoint
from uae_jax.weights.dinov2 import ARCHITECTURE, ARCHITECTURE_WITH_REGISTERS, config_from_json, config_to_json
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.pretrained import load_pretrained, save_pretrained

# facebook/dinov2-large, config.json
LARGE = {
    "apply_layernorm": True,
    "architectures": ["Dinov2Model"],
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 1024,
    "image_size": 518,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "out_features": ["stage24"],
    "out_indices": [24],
    "patch_size": 14,
    "qkv_bias": True,
    "reshape_hidden_states": True,
    "stage_names": ["stem", *(f"stage{i}" for i in range(1, 25))],
    "torch_dtype": "float32",
    "transformers_version": "4.32.0.dev0",
    "use_swiglu_ffn": False,
}

OPTIONS = {
    "plain": dict(num_hidden_layers=3, image_size=8),
    "swiglu": dict(num_hidden_layers=2, use_swiglu_ffn=True, qkv_bias=False, use_mask_token=False, image_size=12),
    "registers": dict(num_hidden_layers=1, num_register_tokens=3, image_size=10, mlp_ratio=2, layerscale_value=0.5),
    "no_registers": dict(num_hidden_layers=2, num_register_tokens=0, use_swiglu_ffn=True, image_size=[8, 8]),
}


def reference(**options) -> torch.nn.Module:
    kind = (Dinov2Config, Dinov2Model)
    if "num_register_tokens" in options:
        kind = (Dinov2WithRegistersConfig, Dinov2WithRegistersModel)
    torch.manual_seed(0)
    return randomise(kind[1](kind[0](hidden_size=16, num_attention_heads=2, patch_size=2, **options)), 1, std=0.1)


def features(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(2))).pooler_output


def test_the_published_config_is_large():
    assert config_from_json(LARGE) == DINOv2Config.large()
    assert config_to_json(DINOv2Config.large()).items() <= {**LARGE, "use_mask_token": True}.items()


def test_a_silent_config_means_what_transformers_takes_it_for(tmp_path):
    for config, architecture in (
        (Dinov2Config(), ARCHITECTURE),
        (Dinov2WithRegistersConfig(), ARCHITECTURE_WITH_REGISTERS),
    ):
        config.save_pretrained(tmp_path)
        explicit = json.loads((tmp_path / "config.json").read_text())
        assert {"patch_size", "image_size", "hidden_size", "qkv_bias"} <= explicit.keys()
        assert architecture.config_from_json({}) == architecture.config_from_json(explicit)


def test_early_configs_with_registers_state_their_filter():
    read = ARCHITECTURE_WITH_REGISTERS.config_from_json
    early = {**LARGE, "num_register_tokens": 4, "interpolate_antialias": True, "interpolate_offset": 0.0}
    assert read(early) == DINOv2Config.large_with_registers()
    with pytest.raises(WeightsError, match=r"interpolate_offset is 0\.1, wanted 0\.0"):
        read({**early, "interpolate_offset": 0.1})


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("drop_path_rate", 0.1, "wanted 0.0"),
        ("hidden_dropout_prob", 0.1, "wanted 0.0"),
        ("attention_probs_dropout_prob", 0.2, "wanted 0.0"),
        ("hidden_act", "relu", "wanted one of gelu"),
        ("image_size", [518, 224], "wanted a whole number"),  # a grid of positions that is no square
        ("patch_size", [14, 16], "wanted a whole number"),
        ("mlp_ratio", 2.5, "wanted a whole number"),
        ("num_hidden_layers", 0, "wanted a whole number from 1"),
        ("qkv_bias", "no", "wanted true or false"),
        ("layer_norm_eps", None, "wanted a number above 0"),
        ("hidden_act", ["gelu"], "wanted a name"),
        ("num_attention_heads", 15, "multiple of the number of heads, 15"),
        ("head_dim", 32, "unknown keys"),
        ("num_register_tokens", 4, "unknown keys"),  # belongs to the other class
    ],
)
def test_refuses_what_the_module_cannot_do(key, value, wanted):
    with pytest.raises(WeightsError, match=wanted) as caught:
        config_from_json({**LARGE, key: value})
    assert key in str(caught.value) or str(value) in str(caught.value)


@pytest.mark.parametrize("case", OPTIONS)
def test_round_trip_keeps_every_bit_and_transformers_loads_it(case, tmp_path):
    model = reference(**OPTIONS[case])
    model.save_pretrained(tmp_path / "theirs")
    save_pretrained(load_pretrained(tmp_path / "theirs"), tmp_path / "ours")

    theirs, ours = open_checkpoint(tmp_path / "theirs"), open_checkpoint(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    for key in theirs:
        assert theirs[key].dtype == ours[key].dtype
        np.testing.assert_array_equal(theirs[key].read(), ours[key].read(), err_msg=key)

    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert_close(features(again), features(model), tolerance=0.0)
    wrote = json.loads((tmp_path / "ours" / "config.json").read_text())
    read = json.loads((tmp_path / "theirs" / "config.json").read_text())
    size = read["image_size"]
    read["image_size"] = size[0] if isinstance(size, list) else size
    assert wrote.items() <= read.items()


@pytest.mark.parametrize("case", OPTIONS)
def test_reads_the_names_that_transformers_has_in_memory(case, tmp_path):
    model = reference(**OPTIONS[case])
    model.save_pretrained(tmp_path / "published")
    model.save_pretrained(tmp_path / "memory", save_original_format=False)
    published, memory = tmp_path / "published", tmp_path / "memory"
    assert open_checkpoint(published).keys() != open_checkpoint(memory).keys()
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(published).params, load_pretrained(memory).params)


@pytest.mark.parametrize("case", OPTIONS)
def test_module_names_are_those_of_the_model_in_memory(case):
    # PEFT stores adapters under these names. weights_in is two modules in memory, so it keeps its published name.
    model = reference(**OPTIONS[case])
    architecture = ARCHITECTURE_WITH_REGISTERS if "num_register_tokens" in OPTIONS[case] else ARCHITECTURE
    entries = architecture.table(architecture.config_from_json(model.config.to_diff_dict()))
    ours = {architecture.module_name(key.rsplit(".", 1)[0]) for entry in entries for key in entry.keys}
    theirs = {key.rsplit(".", 1)[0] for key in model.state_dict()}
    halves = {name for name in theirs if name.endswith(("gate_proj", "up_proj"))}
    assert {name for name in ours if "weights_in" not in name} == theirs - halves


def test_refuses_a_tensor_that_stands_under_both_names(tmp_path):
    reference(**OPTIONS["swiglu"]).save_pretrained(tmp_path, save_original_format=False)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for extra, shape in (
        ("encoder.layer.1.attention.attention.query.weight", (16, 16)),
        ("encoder.layer.1.mlp.weights_in.bias", (96,)),
    ):
        save_file({**tensors, extra: torch.zeros(shape)}, path)
        with pytest.raises(WeightsError, match=f"stands under {extra} too, wanted once"):
            load_pretrained(tmp_path)


def test_a_gate_without_its_other_half_is_reported_as_missing(tmp_path):
    reference(**OPTIONS["swiglu"]).save_pretrained(tmp_path, save_original_format=False)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.layer.0.mlp.up_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(tmp_path)
    assert "missing: encoder.layer.0.mlp.weights_in.weight" in str(caught.value)
    assert "unexpected: encoder.layer.0.mlp.gate_proj.weight" in str(caught.value)

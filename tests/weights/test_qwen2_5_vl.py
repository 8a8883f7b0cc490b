"""Qwen2.5-VL's config.json and keys: both published forms of each in, transformers' folders out."""

import copy
import functools
import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax
import numpy as np
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.models.qwen2_5_vl_cases import CONFIGS, IMAGE, SPECIAL, jit, original, prompts
from tests.parity import assert_close
from uae_jax.models.qwen2_5_vl import qwen2_5_vl_3b, qwen2_5_vl_7b, small, tiny
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights.checkpoint import open_checkpoint
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.pretrained import load_pretrained, save_pretrained
from uae_jax.weights.qwen2_5_vl import ARCHITECTURE, config_from_json, config_to_json

# Qwen/Qwen2.5-VL-3B-Instruct, config.json: flat, with the old name of the rotary settings.
HUB_3B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}

NO_SIZES = {"attention_dropout", "initializer_range", "vision_token_id", "max_window_layers", "sliding_window"}
NO_SIZES |= {"torch_dtype", "transformers_version", "use_cache"}


def test_the_config_of_the_hub_is_3b():
    assert config_from_json(HUB_3B) == qwen2_5_vl_3b()


def test_the_config_that_transformers_makes_of_it_is_3b(tmp_path):
    Qwen2_5_VLConfig.from_dict(HUB_3B).save_pretrained(tmp_path)
    nested = json.loads((tmp_path / "config.json").read_text())
    assert "text_config" in nested and "rope_scaling" not in json.dumps(nested)
    assert config_from_json(nested) == qwen2_5_vl_3b()


def test_flat_config_with_the_default_name_of_rope_is_read():
    # transformers 4 wrote the type back as "default", under one key or both.
    for rope in ({"type": "default"}, {"rope_type": "default"}, {"type": "mrope", "rope_type": "default"}):
        config = {**HUB_3B, "rope_scaling": {**rope, "mrope_section": [16, 24, 24]}}
        assert config_from_json(config) == qwen2_5_vl_3b()


def test_tying_stated_in_the_text_config_counts():
    text = {key: value for key, value in HUB_3B.items() if key not in ("vision_config", "architectures")}
    config = {"text_config": text, "vision_config": HUB_3B["vision_config"]}
    assert config_from_json(config).tie_word_embeddings
    text["tie_word_embeddings"] = False
    assert not config_from_json(config).tie_word_embeddings


def test_a_silent_config_means_what_transformers_takes_it_for(tmp_path):
    # The defaults of the text (72B) do not fit those of the tower, so these three must be said.
    said = {"text_config": {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4}}
    Qwen2_5_VLConfig(**copy.deepcopy(said)).save_pretrained(tmp_path)
    full = json.loads((tmp_path / "config.json").read_text())
    assert full["text_config"]["num_hidden_layers"] == 80
    # transformers writes no mrope_section where none is said, and then computes with [16, 24, 24].
    assert config_from_json(said) == config_from_json(full)
    assert config_from_json(said).text.mrope_section == (16, 24, 24)


@pytest.mark.parametrize("config", [qwen2_5_vl_3b(), qwen2_5_vl_7b(), small(), tiny()])
def test_written_config_reads_back_here_and_in_transformers(config):
    written = config_to_json(config)
    # Version 4 of transformers, which the authors have, finds the text's sizes nowhere else.
    assert {*HUB_3B} - {*written} == NO_SIZES and "text_config" not in written
    assert config_from_json(json.loads(json.dumps(written))) == config
    theirs = Qwen2_5_VLConfig.from_dict(copy.deepcopy(written))
    assert config_from_json(theirs.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "text hidden_act is 'relu', wanted one of"),
        ({"use_sliding_window": True}, "use_sliding_window is True, wanted false"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types holds"),
        ({"head_dim": 64}, "text head_dim is 64, wanted 128"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "text type is 'yarn', wanted one of default, mrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, "text rope_type is 'linear'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 25]}}, "sums to 65, wanted 64"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}, "rope_scaling": None}, "partial_rotary_factor is 0.5"),
        ({"num_key_value_heads": 3}, "wanted a multiple of its 3 kv heads"),
        ({"num_hidden_layers": "36"}, "num_hidden_layers is '36', wanted a positive integer"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is given, wanted unquantised"),
        ({"vision_config": [1]}, "vision_config is a list, wanted an object"),
        ({"vision_config": {"hidden_act": "relu"}}, "vision hidden_act is 'relu'"),
        ({"vision_config": {"in_chans": 1}}, "in_chans is 1, wanted 3"),
        ({"vision_config": {"patch_size": [14, 16]}}, r"patch_size is \[14, 16\], wanted a positive integer"),
        ({"vision_config": {"rope_parameters": {"rope_type": "default"}}}, "vision rope_type is 'default'"),
        ({"vision_config": {"out_hidden_size": 3584}}, "out_width 3584, wanted the text width 2048"),
        ({"vision_config": {"fullatt_block_indexes": 7}}, "fullatt_block_indexes is 7, wanted a list"),
    ],
)
def test_options_that_are_not_implemented_are_refused(change, message):
    config = copy.deepcopy(HUB_3B)
    if isinstance(change.get("vision_config"), dict):
        config["vision_config"] |= change["vision_config"]
    else:
        config |= change
    with pytest.raises(WeightsError, match=message):
        config_from_json(config)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Name of a configuration -> its original and the folder that transformers writes of it."""
    result = {}
    for name in CONFIGS:
        model = original(name, seed=3)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        result[name] = model, folder
    return result


@pytest.fixture(scope="module")
def loaded(saved):
    """Name of a configuration -> what this package loads of that folder, each loaded once."""
    return functools.cache(lambda name: load_pretrained(saved[name][1]))


def as_bytes(folder) -> dict[str, tuple]:
    tensors = open_checkpoint(folder)
    return {key: (t.shape, t.dtype, t.read().tobytes()) for key, t in tensors.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_bit_identical_and_transformers_loads_it(saved, loaded, tmp_path, name):
    model, folder = saved[name]
    save_pretrained(loaded(name), tmp_path / "ours", max_shard_bytes=30_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    assert as_bytes(tmp_path / "ours") == as_bytes(folder)
    again, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    inputs = prompts(loaded(name).config, seed=2).for_torch()
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_the_layout_of_memory_is_read_too(saved, loaded, tmp_path, name):
    model, _ = saved[name]
    model.save_pretrained(tmp_path, save_original_format=False)
    keys = open_checkpoint(tmp_path).keys()
    assert "model.language_model.norm.weight" in keys and "model.visual.merger.ln_q.weight" in keys
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path).params, loaded(name).params)


def rewrite(folder, target, change) -> None:
    target.joinpath("config.json").write_text(folder.joinpath("config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def test_copy_of_a_tied_head_and_rotary_buffers_are_dropped(saved, loaded, tmp_path):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["visual.rotary_pos_emb.inv_freq"] = torch.ones(4)
        tensors["model.rotary_emb.inv_freq"] = torch.ones(4)

    _, folder = saved["tied"]
    rewrite(folder, tmp_path, change)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path).params, loaded("tied").params)


def test_an_untied_head_must_be_there(saved, tmp_path):
    rewrite(saved["untied"][1], tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(WeightsError, match=r"missing: lm_head.weight \[101, 48\], needed for language/lm_head/kernel"):
        load_pretrained(tmp_path)


def test_both_layouts_at_once_are_refused(saved, tmp_path):
    def change(tensors):
        tensors["model.language_model.norm.weight"] = tensors["model.norm.weight"].clone()

    rewrite(saved["tied"][1], tmp_path, change)
    with pytest.raises(WeightsError, match=r"stands as model.* too, wanted once"):
        load_pretrained(tmp_path)


def test_unknown_keys_are_refused(saved, tmp_path):
    rewrite(saved["tied"][1], tmp_path, lambda tensors: tensors.update({"model.layers.3.mlp.up.weight": torch.ones(2)}))
    with pytest.raises(WeightsError, match=r"unexpected: model.layers.3.mlp.up.weight \[2\]"):
        load_pretrained(tmp_path)


def test_loading_onto_a_mesh_splits_and_equals(saved, loaded):
    _, folder = saved["tied"]
    mesh = make_mesh(2, 2, 2)
    got = load_pretrained(folder, mesh=mesh).params
    jax.tree.map(np.testing.assert_array_equal, got, loaded("tied").params)
    placed = sharding.shardings(got, ARCHITECTURE.logical_axes.tree(got), mesh)
    jax.tree.map(
        lambda leaf, s: pytest.fail(str(s)) if not leaf.sharding.is_equivalent_to(s, leaf.ndim) else 0, got, placed
    )


def test_what_transformers_loads_of_a_flat_config_computes_the_same(saved, tmp_path):
    # The hub's form of config.json, made by hand for the tied model, read by both sides.
    _, folder = saved["tied"]
    text = copy.deepcopy(CONFIGS["tied"]["text_config"])
    rope = text.pop("rope_parameters")
    flat = {
        **SPECIAL,
        **text,
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "vision_config": {**CONFIGS["tied"]["vision_config"], "in_chans": 3},
    }
    rewrite(folder, tmp_path, lambda tensors: None)
    (tmp_path / "config.json").write_text(json.dumps(flat))
    ours = load_pretrained(tmp_path)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    batch = prompts(ours.config, [[(1, 4, 8)]])
    assert (batch.tokens == IMAGE).any()
    module = ARCHITECTURE.module(ours.config)
    logits, _ = jit(module.apply)({"params": ours.params}, *batch.for_jax(ours.config))
    with torch.no_grad():
        wanted = theirs(**batch.for_torch()).logits
    assert_close(np.asarray(logits)[batch.valid], wanted[batch.valid], "logits")

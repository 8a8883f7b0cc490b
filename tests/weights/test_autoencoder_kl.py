"""AutoencoderKL's config.json and keys: diffusers' folders in, diffusers' folders out."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import json

import diffusers
import jax
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.parity import assert_close, randomise
from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.weights.autoencoder_kl import config_from_json, config_to_json
from uae_jax.weights.checkpoint import open_checkpoint
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.pretrained import load_pretrained, save_pretrained

FILE = "diffusion_pytorch_model.safetensors"

# stabilityai/stable-diffusion-3.5-large, vae/config.json
SD3 = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.31.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}


def reference(**options) -> diffusers.AutoencoderKL:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        **options,
    )
    return randomise(vae, 1)


def decode(vae: diffusers.AutoencoderKL) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return vae.decode(torch.randn(1, vae.config.latent_channels, 3, 4, generator=generator)).sample


def test_the_published_config_is_sd3():
    assert config_from_json(SD3) == AutoencoderKLConfig.sd3()
    written = config_to_json(AutoencoderKLConfig.sd3())
    assert {key: value for key, value in SD3.items() if key != "_diffusers_version"} == written


def test_a_silent_config_means_what_diffusers_takes_it_for(tmp_path):
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL()  # all defaults: one block of 64, quant convolutions, no shift
    vae.save_pretrained(tmp_path)
    explicit = config_from_json(json.loads((tmp_path / "config.json").read_text()))
    assert config_from_json({"_class_name": "AutoencoderKL"}) == explicit
    assert explicit.shift_factor == 0.0 and explicit.use_quant_conv


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("act_fn", "gelu", "'silu'"),
        ("down_block_types", ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"], "DownEncoderBlock2D"),
        ("up_block_types", ["UpDecoderBlock2D"] * 3, "UpDecoderBlock2D"),
        ("latents_mean", [0.0] * 16, "None"),
        ("latents_std", [1.0] * 16, "None"),
        ("norm_num_groups", 48, "multiples of norm_num_groups 48"),
        ("block_out_channels", None, "a list of whole numbers"),
        ("layers_per_block", 1.5, "a whole number above 0"),
        ("use_quant_conv", 1, "true or false"),
        ("scaling_factor", "1.5", "a number above 0"),
        ("shift_factor", True, "a number or null"),
        ("use_spatial_norm", True, "unknown keys"),
    ],
)
def test_refuses_what_the_module_cannot_do(key, value, wanted):
    with pytest.raises(WeightsError, match=wanted) as caught:
        config_from_json({**SD3, key: value})
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        dict(layers_per_block=1, latent_channels=4),
        dict(layers_per_block=2, latent_channels=3, use_quant_conv=False, shift_factor=0.1, sample_size=64),
        dict(layers_per_block=3, mid_block_add_attention=False, use_post_quant_conv=False, force_upcast=False),
    ],
)
def test_round_trip_keeps_every_bit_and_diffusers_loads_it(options, tmp_path):
    vae = reference(**options)
    vae.save_pretrained(tmp_path / "theirs")
    save_pretrained(load_pretrained(tmp_path / "theirs"), tmp_path / "ours")

    theirs, ours = open_checkpoint(tmp_path / "theirs"), open_checkpoint(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    for key in theirs:
        assert theirs[key].dtype == ours[key].dtype
        np.testing.assert_array_equal(theirs[key].read(), ours[key].read(), err_msg=key)

    again, info = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    wrote = json.loads((tmp_path / "ours" / "config.json").read_text())
    read = json.loads((tmp_path / "theirs" / "config.json").read_text())
    read["shift_factor"] = read["shift_factor"] or 0.0  # null means no shift
    assert {key: value for key, value in read.items() if key != "_diffusers_version"} == wrote
    assert_close(decode(again), decode(vae), tolerance=0.0)


def test_reads_the_attention_names_of_old_checkpoints(tmp_path):
    vae = reference()
    for folder in ("new", "old"):
        vae.save_pretrained(tmp_path / folder)
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, tensor in load_file(tmp_path / "old" / FILE).items():
        for new, old in old_names.items():
            key = key.replace(f".{new}.", f".{old}.")
        tensors[key] = tensor
    save_file(tensors, tmp_path / "old" / FILE)
    assert sum(".query." in key for key in tensors) == 4  # weight and bias, encoder and decoder

    new, old = load_pretrained(tmp_path / "new").params, load_pretrained(tmp_path / "old").params
    jax.tree.map(np.testing.assert_array_equal, new, old)

    extra = "encoder.mid_block.attentions.0.to_q.bias"
    save_file({**tensors, extra: torch.zeros(16)}, tmp_path / "old" / FILE)
    with pytest.raises(WeightsError, match=f"stands under {extra} too, wanted once"):
        load_pretrained(tmp_path / "old")

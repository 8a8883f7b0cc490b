"""The tiny sizes are the published architectures: transformers and diffusers load them and compute the same."""

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import numpy as np
import transformers

from tests.models.qwen2_5_vl_cases import jit, prompts
from tests.parity import assert_close
from tests.tiny.models import random_model, random_uae
from uae_jax.models.qwen2_5_vl import mrope_positions
from uae_jax.models.runtime import Runtime
from uae_jax.weights import uae
from uae_jax.weights.pretrained import save_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model in float32, and its weights."""
    folder, weights = tmp_path_factory.mktemp("tiny") / "uae", random_uae(dtype=np.float32)
    # Wide enough for attention to prefer some keys to others; 0.05 would hide wrong positions.
    weights.encoder = random_model("encoder", dtype=np.float32, std=0.15)
    uae.save_published(weights, folder)
    return folder, weights


def apply(model, *args, **kwargs):
    module = model.architecture.module(model.config, Runtime())
    return jit(lambda p, a: module.apply({"params": p}, *a, **kwargs))(model.params, args)


def test_the_encoder_computes_what_transformers_computes(folder):
    path, weights = folder
    theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(path / "llm_model").eval()
    config = weights.encoder.config
    # A 64-pixel image is 8x8 patches. Nothing but M-RoPE tells its columns apart, so the nine sections must agree.
    batch = random_prompts(config)
    with torch.no_grad():
        inputs = batch.for_torch() | {"mm_token_type_ids": torch.tensor(batch.tokens == config.image_token_id).int()}
        wanted = theirs(**inputs).logits
    logits, _ = apply(weights.encoder, *batch.for_jax(config))
    for row, valid in enumerate(batch.valid):
        assert_close(np.asarray(logits)[row, valid], wanted[row].numpy()[valid], f"row {row}")


def random_prompts(config):
    """Two rows, one with an image, in the tiny tokens."""
    from tests.models import qwen2_5_vl_cases as cases

    batch = prompts(config, [[(1, 8, 8)], []], vocab=900)
    for old, new in (
        (cases.START, config.vision_start_token_id),
        (cases.END, config.vision_end_token_id),
        (cases.PAD, config.pad_token_id),
    ):
        batch.tokens[batch.tokens == old] = new
    return batch


def test_the_columns_of_an_image_are_told_apart(folder):
    config = folder[1].encoder.config
    batch = prompts(config, [[(1, 8, 8)]], vocab=900)
    positions, _ = mrope_positions(batch.tokens, batch.grids, batch.valid, config)
    from uae_jax.models.qwen2_5_vl.language import mrope_angles

    angles = np.asarray(mrope_angles(positions, config.text))[0]
    image = batch.tokens[0] == config.image_token_id
    first_row = angles[image].reshape(4, 4, -1)[0]
    # The published sections and base turn neighbouring columns by 2e-4 radians at most in a head of 32.
    assert np.abs(np.diff(first_row, axis=0)).max(axis=1).min() > 0.1
    first_column = angles[image].reshape(4, 4, -1)[:, 0]
    assert np.abs(np.diff(first_column, axis=0)).max(axis=1).min() > 0.1


def test_decoder_and_vae_compute_what_diffusers_computes(folder):
    path, weights = folder
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 16, 16, 4)).astype(np.float32)
    inputs = [latents, np.array([10.0, 900.0], np.float32)]
    inputs += [rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 128), (2, 64))]
    theirs = diffusers.SD3Transformer2DModel.from_pretrained(path / "dit").eval()
    vae = diffusers.AutoencoderKL.from_pretrained(path / "SD3/vae").eval()
    with torch.no_grad():
        nchw, timestep, context, pooled = (torch.tensor(x) for x in (latents.transpose(0, 3, 1, 2), *inputs[1:]))
        wanted = theirs(nchw, context, pooled, timestep).sample.permute(0, 2, 3, 1)
        pixels = vae.decode(nchw).sample.permute(0, 2, 3, 1)
    assert_close(apply(weights.decoder, *inputs), wanted, "velocity")
    assert_close(apply(weights.vae, latents, method="decode"), pixels, "pixels")


@pytest.mark.parametrize("part", ["clip", "longclip", "dinov2", "dinov3"])
def test_scorers_compute_what_transformers_computes(part, tmp_path):
    model = random_model(part)
    save_pretrained(model, tmp_path / part)
    theirs, info = transformers.AutoModel.from_pretrained(tmp_path / part, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    nchw = torch.tensor(images.transpose(0, 3, 1, 2))
    if "clip" not in part:
        with torch.no_grad():
            wanted = theirs.eval()(nchw).last_hidden_state[:, 0]
        assert_close(apply(model, images)[0], wanted)
        return
    ends = model.config.text.vocab - 2, model.config.text.vocab - 1
    tokens = np.full((3, model.config.text.positions), ends[1], np.int32)
    tokens[:, 0], tokens[:, 1:7] = ends[0], np.random.default_rng(1).integers(0, 1000, (3, 6))
    with torch.no_grad():
        wanted = theirs.eval()(input_ids=torch.tensor(tokens).long(), pixel_values=nchw).logits_per_image
    assert_close(apply(model, images, tokens)[0], wanted)

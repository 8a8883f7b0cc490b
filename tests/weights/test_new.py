"""Models from nothing: right sizes, right beginnings, and the files that belong to them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.models.projector import ProjectorConfig
from uae_jax.models.runtime import Runtime
from uae_jax.models.sd3 import SD3Config
from uae_jax.weights import new, registry, sd3, uae
from uae_jax.weights.pretrained import parameter_count


def counts(size, table):
    return {part: parameter_count(kind.abstract(config())) for part, (kind, config) in table[size].items()}


def test_the_tiny_model_fits_into_twelve_megabytes():
    everything = counts("tiny", new.UAE_SIZES) | counts("tiny", new.SCORER_SIZES)
    assert len(everything) == 10
    # 12 MB of bfloat16 are 6.0 M numbers; 0.1 M are left to tokenizers and configs.
    assert 5e6 < sum(everything.values()) < 5.9e6, everything


def test_the_small_model_suits_one_accelerator():
    sizes = counts("small", new.UAE_SIZES)
    assert 2e8 < sizes["encoder"] < 2.5e8 and 2.7e8 < sizes["decoder"] < 3.3e8, sizes
    # SD3's own VAE has 84 M.
    assert sizes["vae"] == parameter_count(registry.find("AutoencoderKL").abstract(AutoencoderKLConfig.sd3()))


@pytest.mark.parametrize("size", new.UAE_SIZES)
def test_the_parts_of_a_size_fit_each_other(size):
    sizes = {part: config() for part, (_, config) in new.UAE_SIZES[size].items()}
    assert sizes["projector"].width == sizes["encoder"].text.width
    assert sizes["decoder"].context_dim == sizes["projector"].out
    assert sizes["decoder"].in_channels == sizes["vae"].latent_channels
    assert sizes["decoder"].pooled_dim == sizes["text_encoder"].projection + sizes["text_encoder_2"].projection
    assert sizes["decoder"].sample_size * sizes["vae"].downsampling == sizes["vae"].sample_size


@pytest.mark.parametrize("size", new.UAE_SIZES)
def test_sizes_survive_the_published_configs(size):
    parts = {**new.UAE_SIZES[size], **new.SCORER_SIZES.get(size, {})}
    for part, (kind, config) in parts.items():
        if part != "projector":  # which has no config of its own there
            assert kind.config_from_json(kind.config_to_json(config())) == config(), part


@pytest.mark.slow
def test_a_fresh_decoder_predicts_nothing_and_can_learn_at_once():
    config = dataclasses.replace(SD3Config.tiny(), num_layers=2)
    model = new.new_model(sd3.ARCHITECTURE, config, seed=0)
    module = sd3.ARCHITECTURE.module(config, Runtime())
    rng = np.random.default_rng(0)
    shapes = ((2, 4, 4, 4), (2,), (2, 3, 128), (2, 64))
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

    def loss(params):
        out = module.apply({"params": params}, *inputs)
        return jnp.sum((out - 1) ** 2), out

    grads, out = jax.jit(jax.grad(loss, has_aux=True))(model.params)
    np.testing.assert_array_equal(out, 0)  # adaLN-Zero: gates and output projection begin at zero
    assert np.abs(grads["proj_out"]["kernel"]).max() > 0


@pytest.mark.slow
def test_numbers_depend_on_the_seed_alone():
    kind, config = registry.find("CLIPTextModelWithProjection"), new.UAE_SIZES["tiny"]["text_encoder"][1]()
    one, same, other = (new.new_model(kind, config, seed).params for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, same))
    assert not np.array_equal(one["tokens"], other["tokens"])


@pytest.mark.slow
def test_branches_begin_smaller_the_deeper_the_model():
    kind, config = registry.find("CLIPTextModelWithProjection"), new.UAE_SIZES["tiny"]["text_encoder"][1]()
    for depth in (1, 16):
        deep = dataclasses.replace(config, depth=depth, hidden=512)
        kernel = new.new_model(kind, deep, 0).params["layers"]["mlp"]["down"]["kernel"]
        # Fan-in 512, two branches a layer: variance 1 / (512 * 2 depth).
        assert np.std(kernel) == pytest.approx((1 / (512 * 2 * depth)) ** 0.5, rel=0.05)


def test_an_unknown_size_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="model is 'new:tniy', the nearest there is 'new:tiny'; all: new:tiny"):
        new.open_uae("new:tniy")


def test_a_new_model_brings_the_files_of_its_size(monkeypatch):
    monkeypatch.setattr(new, "new_model", lambda kind, config, seed, **_: (kind.name, config, seed))
    tiny, small = new.open_uae("new:tiny", seed=3), new.new_uae("small", 3)
    assert tiny.decoder[1] == SD3Config.tiny() and small.projector[1] == ProjectorConfig.small()
    seeds = [getattr(tiny, part)[2] for part in new.UAE_SIZES["tiny"]]
    assert len(set(seeds)) == len(seeds)  # equal parts would begin alike
    assert uae.scheduler_shift(tiny) == 1.0 and uae.scheduler_shift(small) == 3.0
    assert "llm_model/tokenizer.json" in tiny.files and "llm_model/tokenizer.json" in small.files
    assert uae.INFERENCE in tiny.files and uae.INFERENCE not in small.files

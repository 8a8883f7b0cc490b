"""Every stage of `configs/` at sizes that nothing here can hold, by shape alone: nothing is allocated, none loaded.

What a stage loads is replaced by arrays that exist while shapes are evaluated; all else is the stage itself, from the
rollout to the gradient. The tokenizer is the tiny one, whose special tokens have other numbers.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import meshes
from uae_jax.data.records import Sample
from uae_jax.models import clip
from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.models.dinov2 import DINOv2Config
from uae_jax.models.dinov3 import DINOv3Config
from uae_jax.models.projector import ProjectorConfig
from uae_jax.models.qwen2_5_vl import config as qwen
from uae_jax.models.runtime import Runtime
from uae_jax.models.sd3 import SD3Config
from uae_jax.rewards.scorers import CLIP_INPUT, DINOV2_INPUT, DINOV3_INPUT, Scorer
from uae_jax.stages import registry, uae_models
from uae_jax.training import configure
from uae_jax.weights import new, uae
from uae_jax.weights.architecture import Pretrained

SIDE = {"full": 512, "small": 256}
# All of the decoder and its projector; or adapters, and the projector. Parameters, least and most.
TRAINED = {"full": {"pretrain": (8e9, 9e9), "": (1e7, 3e8)}, "small": {"pretrain": (2e8, 6e8), "": (1e6, 5e7)}}
CASES = [
    ("gen_for_understanding", "full"),
    *(
        pytest.param(name, size, marks=pytest.mark.slow)
        for name, size in (
            *(("pretrain", size) for size in SIDE),
            *(("cold_start", size) for size in SIDE),
            ("understanding_for_gen", "full"),
            ("alternate", "small"),
        )
    ),
]


def _encoder():
    tokens = {field: getattr(qwen.tiny(), field) for field in vars(qwen.tiny()) if field.endswith("_token_id")}
    return dataclasses.replace(qwen.qwen2_5_vl_3b(), **tokens)


FULL = {
    "encoder": _encoder,
    "projector": ProjectorConfig,
    "decoder": SD3Config.sd35_large,
    "vae": AutoencoderKLConfig.sd3,
    "text_encoder": clip.text_l14,
    "text_encoder_2": clip.text_big_g,
}
SCORERS = {
    "clip": (clip.clip_l14, CLIP_INPUT),
    "longclip": (clip.longclip_l14, CLIP_INPUT),
    "dinov2": (DINOv2Config.large, DINOV2_INPUT),
    "dinov3": (DINOv3Config.large, DINOV3_INPUT),
}


def there(architecture, config, dtype):
    """A model of zeros; under `eval_shape` they take no memory."""
    params = architecture.abstract(config, Runtime(param_dtype=dtype))
    return Pretrained(architecture, config, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params))


@pytest.fixture
def opened(size, monkeypatch):
    """Whatever is opened has this size, and the scorers are the published ones."""

    def open_uae(parts, seed, mesh=None):
        models = {
            part: there(architecture, FULL[part]() if size == "full" else config(), jnp.bfloat16)
            for part, (architecture, config) in new.UAE_SIZES["tiny" if size == "full" else size].items()
        }
        own = (uae.INFERENCE, f"{uae.LLM}/preprocessor_config.json")
        files = {name: text for name, text in uae.read_files("tiny").items() if name not in own}
        return uae.UAEWeights(**models, files=files)

    def scorer(folder, *, mesh=None):
        name = next(name for name in ("longclip", "clip", "dinov2", "dinov3") if name in str(folder))
        config, preprocessing = SCORERS[name]
        return Scorer(there(new.SCORER_SIZES["tiny"][name][0], config(), jnp.float32), preprocessing)

    monkeypatch.setattr(uae_models, "open_uae", open_uae)
    monkeypatch.setattr(uae_models, "pooled_constant", lambda weights, *_: jnp.zeros(weights.decoder.config.pooled_dim))
    monkeypatch.setattr(Scorer, "from_pretrained", scorer)


@pytest.mark.parametrize(("config", "size"), CASES)
def test_stage_loads_and_its_step_has_the_right_shapes(config, size, opened, monkeypatch):
    pixels = np.zeros((SIDE[size], SIDE[size], 3), np.uint8)
    for name, experiment in configure.load_config(f"configs/{config}.py:size={size}")[:2]:  # the rounds are alike
        stage = registry.find(experiment.stage)(experiment.settings, experiment.seed)
        mesh = meshes.one_device()
        samples = [Sample(str(i), pixels, "a red circle", "text") for i in range(2)]

        def step(key, stage=stage, mesh=mesh, samples=samples):
            parts = stage.load(mesh)
            batch = jax.tree.map(jnp.asarray, stage.collate(samples))
            batch, _ = stage.prepare(parts.params, parts.state, parts.frozen, batch, key)
            (loss, _), grads = jax.value_and_grad(stage.loss, has_aux=True)(
                parts.params, parts.state, parts.frozen, batch, key
            )
            return loss, parts.params, grads, batch

        with jax.set_mesh(mesh), monkeypatch.context() as patch:
            patch.setattr(jax, "set_mesh", contextlib.nullcontext)  # cannot be nested in a trace
            loss, params, grads, batch = jax.eval_shape(step, jax.random.key(0))
        assert loss.shape == () and loss.dtype == jnp.float32, name
        assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), grads)
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
        trained = sum(x.size for x in jax.tree.leaves(params))
        least, most = TRAINED[size].get(experiment.stage, TRAINED[size][""])
        assert least < trained < most
        if "advantage" in batch:
            assert batch["advantage"].shape == (2, experiment.settings.group)

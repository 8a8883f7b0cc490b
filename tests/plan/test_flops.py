"""Closed forms against the traced programs, XLA's own count, and figures that were worked out by hand."""

import dataclasses

import jax
import pytest

from tests.plan.counting import products
from uae_jax.models import clip
from uae_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from uae_jax.models.dinov2 import DINOv2Config
from uae_jax.models.dinov3 import DINOv3Config
from uae_jax.models.projector import ProjectorConfig
from uae_jax.models.qwen2_5_vl import config as qwen
from uae_jax.models.qwen2_5_vl.positions import ImagePatches
from uae_jax.models.runtime import Runtime
from uae_jax.models.sd3 import SD3Config
from uae_jax.plan import flops
from uae_jax.plan.flops import Backward, Work
from uae_jax.weights import autoencoder_kl, projector, qwen2_5_vl, registry, sd3

LARGE = SD3Config.sd35_large()
TERA = 1e12


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def denoising(config, side, tokens, batch=1, runtime=Runtime()):
    """(program, arguments) of the decoder on latents of side x side."""
    module = sd3.ARCHITECTURE.module(config, runtime)
    params = sd3.ARCHITECTURE.abstract(config)
    latents = shape(batch, side, side, config.in_channels)
    context, pooled = shape(batch, tokens, config.context_dim), shape(batch, config.pooled_dim)
    return (lambda p, *rest: module.apply({"params": p}, *rest)), (params, latents, shape(batch), context, pooled)


@pytest.mark.parametrize(
    ("side", "tokens", "wanted"),
    [(64, 512, 9.11), (64, 256, 7.49), (128, 512, 32.7), (128, 333, 31.1)],  # 512 and 1024 pixels
)
def test_sd35_large_in_teraflops(side, tokens, wanted):
    # 24 D^2 per token and layer, less the last layer's text, and 4 N^2 D: far from 6 N D / 3 = 16 at 512 pixels,
    # for a third of all parameters is modulation, used once per image, and a token runs one stream of two.
    assert flops.sd3_denoise(LARGE, side * side // 4, tokens).total / TERA == pytest.approx(wanted, rel=0.01)


def test_ways_back_of_sd35_large():
    forward = flops.sd3_denoise(LARGE, 1024, 512)
    wanted = {
        ("full", "full"): 36.8,
        ("lora", "none"): 19.5,
        ("lora", "full"): 28.6,
    }
    for (mode, remat), value in wanted.items():
        assert Backward(mode, remat).of(forward).total / TERA == pytest.approx(value, rel=0.01), (mode, remat)
    at_1024 = flops.sd3_denoise(LARGE, 4096, 512)
    assert Backward("full", "full").of(at_1024).total / TERA == pytest.approx(135, rel=0.01)


def test_work_of_rollouts_and_of_flow_grpo():
    forward = flops.sd3_denoise(LARGE, 1024, 512)
    rollout = 10 * 2 * forward
    assert rollout.total / TERA == pytest.approx(182, rel=0.01)
    assert (40 * 2 * flops.sd3_denoise(LARGE, 4096, 512)).total / TERA == pytest.approx(2613, rel=0.01)
    for remat, wanted in (("none", 697), ("full", 861)):
        trained = 9 * 2 * (Backward("lora", remat).of(forward) + forward)
        assert (rollout + trained).total / TERA == pytest.approx(wanted, rel=0.01)


def test_other_published_models():
    text = qwen.qwen2_5_vl_3b().text
    assert flops.text_layer_weights(text) == pytest.approx(77.1e6, rel=0.001)
    assert text.depth * flops.text_layer_weights(text) + text.vocab * text.width == pytest.approx(3.086e9, rel=0.001)
    assert flops.vae_decode(AutoencoderKLConfig.sd3(), 512, 512).total / TERA == pytest.approx(2.5, rel=0.02)
    assert flops.vae_decode(AutoencoderKLConfig.sd3(), 1024, 1024).total / TERA == pytest.approx(10.5, rel=0.02)
    for config in (clip.clip_l14(), DINOv2Config.large()):
        assert flops.image_features(config, 224).total / TERA == pytest.approx(0.16, rel=0.03)


SD3_CASES = {
    "large": SD3Config(num_layers=4, num_heads=2, context_dim=96, pooled_dim=32, sample_size=16, pos_embed_max_size=16),
    "medium": SD3Config(
        num_layers=4, num_heads=2, context_dim=96, pooled_dim=32, sample_size=16, pos_embed_max_size=16,
        dual_attention_layers=(0, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SD3_CASES)
def test_sd3_is_what_is_traced(name):
    config = SD3_CASES[name]
    program, arguments = denoising(config, 16, 48)
    wanted = flops.sd3_denoise(config, 64, 48) + flops.sd3_modulation(config)
    unread = 2 * 48 * config.width**2  # the last layer's queries of the text, which XLA drops
    assert products(program, *arguments) == wanted.total + unread


def test_language_model_is_what_is_traced():
    config = qwen.tiny()
    module = qwen2_5_vl.ARCHITECTURE.module(config, Runtime())
    params = qwen2_5_vl.ARCHITECTURE.abstract(config)
    tokens, positions = shape(1, 24, dtype="int32"), shape(3, 1, 24, dtype="int32")
    got = products(lambda p, *rest: module.apply({"params": p}, *rest)[0], params, tokens, positions)
    wanted = flops.text_layers(config.text, 24, flash=False) + flops.text_head(config.text, 24)
    assert got == wanted.total
    # Half of causal attention is not to be seen; a flash kernel leaves it out.
    assert flops.text_layers(config.text, 24).attention == wanted.attention / 2


def test_vision_tower_is_what_is_traced():
    # `lax.cond` chooses the attention of each layer, so that one of the two kinds stands for all in the trace.
    config = dataclasses.replace(qwen.tiny().vision, full_attention_layers=(0, 1, 2, 3))
    whole = dataclasses.replace(qwen.tiny(), vision=config)
    module = qwen2_5_vl.ARCHITECTURE.module(whole, Runtime())
    count, windows = 64, 4
    images = ImagePatches(
        patches=shape(1, count, config.patch_width),
        position=shape(1, count, 2, dtype="int32"),
        segment=shape(1, count, dtype="int32"),
        window=shape(1, windows, config.window_patches, dtype="int32"),
        slot=shape(1, count, dtype="int32"),
    )
    params = qwen2_5_vl.ARCHITECTURE.abstract(whole)
    program = lambda p, x: module.apply({"params": p}, x, method="encode_images")  # noqa: E731
    assert products(program, params, images) == flops.vision(config, count, windows).total


@pytest.mark.parametrize("extra", [False, True])
def test_vae_is_what_is_traced(extra):
    config = dataclasses.replace(AutoencoderKLConfig.tiny(), use_quant_conv=extra, use_post_quant_conv=extra)
    params = autoencoder_kl.ARCHITECTURE.abstract(config)
    module = AutoencoderKL(config)

    def run(method, *sizes):
        program = lambda p, x: jax.tree.leaves(module.apply({"params": p}, x, method=method))  # noqa: E731
        return products(program, params, shape(1, *sizes))

    assert run("encode", 32, 64, 3) == flops.vae_encode(config, 32, 64).total
    assert run("decode", 8, 16, config.latent_channels) == flops.vae_decode(config, 32, 64).total


@pytest.mark.parametrize(
    ("architecture", "config", "method"),
    [
        ("CLIPModel", clip.tiny(), "encode_image"),
        ("Dinov2Model", DINOv2Config.tiny(), None),
        ("Dinov2Model", dataclasses.replace(DINOv2Config.tiny(), swiglu=True), None),
        ("DINOv3ViTModel", DINOv3Config.tiny(), None),
    ],
)
def test_scorers_are_what_is_traced(architecture, config, method):
    found = registry.find(architecture)
    module, params = found.module(config, Runtime()), found.abstract(config)
    got = products(lambda p, x: module.apply({"params": p}, x, method=method), params, shape(1, 64, 64, 3))
    assert got == pytest.approx(flops.image_features(config, 64).total, rel=1e-3)  # resizing positions adds a little


def test_projector_is_what_is_traced():
    config = ProjectorConfig.tiny()
    module, params = projector.ARCHITECTURE.module(config, Runtime()), projector.ARCHITECTURE.abstract(config)
    got = products(lambda p, x: module.apply({"params": p}, x), params, shape(1, 10, config.width))
    assert got == flops.projector(config, 10).total


@pytest.mark.parametrize(("mode", "remat"), [("full", "none"), ("full", "full"), ("lora", "full"), ("lora", "none")])
def test_ways_back_are_what_is_traced(mode, remat):
    """Without a flash kernel; with one, attention recomputes its logits in both of its two passes back."""
    config = SD3_CASES["large"]
    program, (params, *rest) = denoising(config, 16, 48, runtime=Runtime(remat=remat))
    latents, timestep, context, pooled = rest
    if mode == "full":
        got = products(jax.grad(lambda p, *given: program(p, *given).sum()), params, *rest)
    else:
        # What adapters leave of it: gradients of activations, here of what both streams and the gates are made of.
        # (Without the gates', a layer's last product would not be computed again.)
        loss = lambda x, c, v, p, t: program(p, x, t, c, v).sum()  # noqa: E731
        got = products(jax.grad(loss, argnums=(0, 1, 2)), latents, context, pooled, params, timestep)
    forward = flops.sd3_denoise(config, 64, 48)
    wanted = Backward(mode, remat, flash=False).of(forward)
    assert got == pytest.approx(wanted.total, rel=0.06)  # ends and modulation are not computed again


def test_xla_counts_the_same():
    """A stack of one layer is no loop, so that XLA's count holds; wide enough that elementwise work is little."""
    config = SD3Config(num_layers=2, num_heads=8, context_dim=512, pooled_dim=64, sample_size=32, pos_embed_max_size=16)
    program, arguments = denoising(config, 32, 128)
    compiled = jax.jit(program, compiler_options={"xla_backend_optimization_level": 0}).lower(*arguments).compile()
    wanted = flops.sd3_denoise(config, 256, 128) + flops.sd3_modulation(config)
    assert compiled.cost_analysis()["flops"] == pytest.approx(wanted.total, rel=0.03)


def test_work_adds_up():
    assert 2 * Work(1, 2) + Work(3, 4) == Work(5, 8) and (Work(1, 2) * 3).total == 9

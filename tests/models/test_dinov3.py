"""DINOv3 equals transformers': every layer, rotary angles, gradients; on one device and on eight."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import assert_close, convert, randomise, relative_error
from uae_jax.models import lora
from uae_jax.models.dinov3 import DINOv3, DINOv3Config, example_inputs, rotary
from uae_jax.models.layers import rotate
from uae_jax.models.runtime import Runtime
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights.pretrained import load_pretrained

# (options of transformers, image height and width)
CASES = {
    # The kind of ViT-L/16: four registers, no bias on keys. Odd depth, wide image.
    "plain": (dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, patch_size=4,
                   num_register_tokens=4), (8, 20)),
    # The kind of ViT-7B/16: gated, fewer biases. No registers, tall image, other wavelengths.
    "gated": (dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, patch_size=6,
                   num_register_tokens=0, use_gated_mlp=True, hidden_act="silu", query_bias=False, value_bias=False,
                   rope_theta=30.0), (24, 12)),
    # Every bias the other way round, an epsilon that would show if misread, one patch column.
    "biases": (dict(hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=1, patch_size=8,
                    num_register_tokens=1, key_bias=True, proj_bias=False, mlp_bias=False, layer_norm_eps=1e-2,
                    layerscale_value=0.3), (24, 8)),
    # Gated with all biases, three heads of eight, image of a single patch.
    "gated_biases": (dict(hidden_size=24, intermediate_size=16, num_hidden_layers=1, num_attention_heads=3,
                          patch_size=4, num_register_tokens=2, use_gated_mlp=True, key_bias=True), (4, 4)),
}  # fmt: skip


def torch_model(case):
    """A small `DINOv3ViTModel` with noise in every parameter."""
    torch.manual_seed(0)
    return randomise(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**CASES[case][0])), seed=1)


def images(case, batch=2):
    return np.random.default_rng(2).standard_normal((batch, *CASES[case][1], 3)).astype(np.float32)


def pixels(x):
    return torch.as_tensor(x).permute(0, 3, 1, 2)


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers_layer_by_layer(case, tmp_path):
    model, x = torch_model(case), images(case)
    ours = convert(model, tmp_path)
    with torch.no_grad():
        wanted = model(pixels(x), output_hidden_states=True)
    (features, aux), named = ours.with_intermediates(x)
    layers = named["layers"]["hidden"][0]
    assert len(layers) == CASES[case][0]["num_hidden_layers"] == len(wanted.hidden_states) - 1
    for i, hidden in enumerate(wanted.hidden_states[1:]):
        assert_close(layers[i], hidden, f"layer {i}")
    assert_close(aux["hidden"], wanted.last_hidden_state, "hidden")
    assert features.shape == (2, CASES[case][0]["hidden_size"])
    assert_close(features, wanted.pooler_output, "features")


@pytest.mark.parametrize("case", ["plain", "gated"])
def test_rotary_angles_equal_transformers(case):
    options, (height, width) = CASES[case]
    patch = options["patch_size"]
    embed = transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTRopePositionEmbedding(
        transformers.DINOv3ViTConfig(**options)
    ).eval()
    wanted = embed(torch.zeros(1, 3, height, width))
    config = DINOv3Config(
        width=options["hidden_size"], hidden=1, depth=1, heads=options["num_attention_heads"], patch_size=patch,
        registers=options["num_register_tokens"], rope_theta=options.get("rope_theta", 100.0),
    )  # fmt: skip
    prefix = 1 + config.registers
    angles = rotary(height // patch, width // patch, config)[0]
    np.testing.assert_array_equal(angles[:prefix], 0)  # class token and registers do not turn
    for function, theirs in zip((np.cos, np.sin), wanted, strict=True):
        # Theirs says each angle twice, for both halves of a head. They go up to 2 pi, where float32 is 5e-7 coarse.
        np.testing.assert_allclose(np.tile(function(angles[prefix:]), 2), theirs.numpy(), atol=2e-6)


def test_rotary_angles_by_hand():
    # One row of two patches: centres at y = 0, x = -1/2 and +1/2. Head width 8: wavelengths 100^0 and 100^(4/8) = 10,
    # so x turns by 2 pi x: -+ pi and -+ pi/10, y by nothing. Corners in place of centres would give x = -1 and 0.
    config = DINOv3Config(width=8, hidden=1, depth=1, heads=1, registers=0)
    wanted = np.array([0, 0, np.pi, np.pi / 10])
    np.testing.assert_allclose(rotary(1, 2, config), [[np.zeros(4), -wanted, wanted]], atol=1e-6)
    # A quarter turn takes the pair (1, 0) to (0, 1); pairs lie half a head apart.
    turned = rotate(jnp.array([1.0, 0, 0, 0]).reshape(1, 1, 1, 4), jnp.full((1, 1, 2), np.pi / 2))
    np.testing.assert_allclose(turned.ravel(), [0, 0, 1, 0], atol=1e-7)


def test_image_size_is_free_in_multiples_of_the_patch(tmp_path):
    # Positions are relative to the image: trained at one size, run at others.
    model = torch_model("plain")
    ours = convert(model, tmp_path)
    x = np.random.default_rng(5).standard_normal((1, 16, 12, 3)).astype(np.float32)
    with torch.no_grad():
        assert_close(ours(x)[0], model(pixels(x)).pooler_output)
    with pytest.raises(ValueError, match="image is 16x14, wanted multiples of the patch side 4"):
        ours(np.zeros((1, 16, 14, 3), np.float32))


def test_gradient_to_the_pixels_equals_pytorch(tmp_path):
    # The reward is differentiated through this model, down to the painted image; layers are recomputed on the way.
    model, x = torch_model("plain"), images("plain")
    ours = convert(model, tmp_path, Runtime(remat="full"))
    weights = np.random.default_rng(4).standard_normal((2, 32)).astype(np.float32)
    leaf = pixels(x).clone().requires_grad_()
    (model(leaf).pooler_output * torch.as_tensor(weights)).sum().backward()
    got = jax.jit(jax.grad(lambda x: jnp.sum(ours(x)[0] * weights)))(x)
    assert_close(got, leaf.grad.permute(0, 2, 3, 1))


def test_sharded_equals_single_device(tmp_path):
    ours, x = convert(torch_model("plain"), tmp_path), images("plain", batch=4)
    wanted = ours(x)[0]
    mesh = make_mesh(2, 2, 2)
    params = load_pretrained(tmp_path, mesh=mesh).params
    # [3, 32, 4, 8] with D over fsdp and heads over tensor.
    assert params["layers"]["attn"]["q"]["kernel"].sharding.shard_shape((3, 32, 4, 8)) == (3, 16, 2, 8)
    with jax.set_mesh(mesh):
        got = jax.jit(ours.module.apply)({"params": params}, x)[0]
    # Sums over shards in another order: rounding only.
    assert relative_error(got, wanted) <= 1e-5


def test_bfloat16_keeps_the_direction(tmp_path):
    # bfloat16 has 8 bits: 0.4 % for each operation, so a few per cent after three layers, and a cosine beyond 0.99.
    exact, x = convert(torch_model("plain"), tmp_path), images("plain")
    coarse = dataclasses.replace(exact, module=DINOv3(exact.config, Runtime(dtype=jnp.bfloat16)))
    a, b = np.asarray(exact(x)[0]), np.asarray(coarse(x)[0])
    assert b.dtype == jnp.bfloat16
    b = b.astype(np.float32)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert (cosine > 0.99).all() and not np.array_equal(a, b)


def test_adapters_reach_every_linear_layer():
    config = dataclasses.replace(DINOv3Config.tiny(), gated=True)
    params = jax.eval_shape(DINOv3(config).init, jax.random.key(0), *example_inputs(config))["params"]
    wanted = ["attn/k", "attn/out", "attn/q", "attn/v", "mlp/down", "mlp/gate", "mlp/up"]
    assert lora.target_paths(params, lora.LoRAConfig()) == [*(f"layers/{name}" for name in wanted), "patch"]


def test_sizes_that_do_not_fit_are_refused():
    tiny = DINOv3Config.tiny()
    with pytest.raises(ValueError, match="width is 36, wanted a multiple of 24: the rotary"):
        dataclasses.replace(tiny, width=36, heads=6)
    with pytest.raises(ValueError, match=r"activation is 'relu', wanted one of gelu"):
        dataclasses.replace(tiny, activation="relu")

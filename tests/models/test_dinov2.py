"""DINOv2 with and without registers against transformers, layer by layer."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from tests.parity import assert_close, convert, randomise, relative_error
from uae_jax.models import dinov2
from uae_jax.models.dinov2 import DINOv2, DINOv2Config
from uae_jax.models.runtime import Runtime
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights.dinov2 import ARCHITECTURE, ARCHITECTURE_WITH_REGISTERS
from uae_jax.weights.pretrained import load_pretrained, parameter_count

# (transformers options, image height and width). The grid of trained positions is 4 x 4 in all but the last.
CASES = {
    "plain_enlarged": (dict(num_hidden_layers=3, patch_size=4, image_size=16), (20, 28)),
    "plain_shrunk_one_side": (dict(num_hidden_layers=2, patch_size=4, image_size=16, mlp_ratio=3), (8, 24)),
    # 23 // 5 = 4: the grid is the image's, although 23 is not 20, and nothing is interpolated.
    "swiglu_same_grid": (
        dict(
            num_hidden_layers=3,
            patch_size=5,
            image_size=23,
            num_attention_heads=3,
            hidden_size=24,
            use_swiglu_ffn=True,
            qkv_bias=False,
            use_mask_token=False,
        ),
        (20, 20),
    ),
    "registers_enlarged": (
        dict(
            num_hidden_layers=3,
            patch_size=4,
            image_size=16,
            num_register_tokens=4,
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-3,
        ),
        (20, 28),
    ),
    "registers_swiglu_shrunk": (
        dict(num_hidden_layers=2, patch_size=3, image_size=12, num_register_tokens=1, use_swiglu_ffn=True, mlp_ratio=2),
        (6, 9),
    ),
    "no_registers_shrunk": (
        dict(num_hidden_layers=1, patch_size=2, image_size=14, num_register_tokens=0, qkv_bias=False),
        (6, 20),
    ),
}


def reference(seed: int = 0, **options) -> torch.nn.Module:
    kind = (Dinov2Config, Dinov2Model)
    if "num_register_tokens" in options:
        kind = (Dinov2WithRegistersConfig, Dinov2WithRegistersModel)
    torch.manual_seed(seed)
    model = kind[1](kind[0](**{"hidden_size": 32, "num_attention_heads": 2, **options}))
    return randomise(model, seed + 1, std=0.1)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers_layer_by_layer(case, tmp_path):
    options, (height, width) = CASES[case]
    model = reference(**options)
    ours = convert(model, tmp_path)
    images = noise(2, height, width, 3)
    with torch.no_grad():
        wanted = model(nchw(images), output_hidden_states=True)

    (features, aux), intermediates = ours.with_intermediates(images)
    assert_close(intermediates["embeddings"][0], wanted.hidden_states[0], "embeddings")
    layers = intermediates["layers"]["hidden"][0]
    assert len(layers) == len(wanted.hidden_states) - 1 == options["num_hidden_layers"]
    for i, (got, hidden) in enumerate(zip(layers, wanted.hidden_states[1:], strict=True)):
        assert_close(got, hidden, f"layer {i}")
    assert_close(aux["hidden"], wanted.last_hidden_state, "last hidden state")
    assert_close(features, wanted.pooler_output, "features")


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("n", "out"), [(4, 7), (7, 4), (37, 16), (5, 13), (9, 2), (6, 6)])
def test_resize_matrix_is_bicubic_interpolation_of_torch(n, out, antialias):
    # Resizing the columns of the identity yields the matrix. torch computes positions in float32: some 1e-6.
    eye = torch.eye(n)[:, None, None].expand(n, 1, 3, n).contiguous()
    wanted = torch.nn.functional.interpolate(
        eye, size=(3, out), mode="bicubic", align_corners=False, antialias=antialias
    )
    got = dinov2.resize_matrix(n, out, antialias=antialias)
    np.testing.assert_allclose(got, wanted[:, 0, 0].T.numpy(), atol=2e-6)
    np.testing.assert_allclose(got.sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.slow
def test_image_gradient_equals_transformers_and_does_not_depend_on_remat(tmp_path):
    # The cold start differentiates the reward through the scorer, down to the pixels.
    options, (height, width) = CASES["plain_enlarged"]
    model = reference(**options)
    images, weight = noise(1, height, width, 3), noise(1, 32, seed=1)
    pixels = nchw(images).requires_grad_()
    (model(pixels).pooler_output * torch.from_numpy(weight)).sum().backward()
    wanted = pixels.grad.numpy().transpose(0, 2, 3, 1)

    for remat in ("none", "full"):
        ours = convert(model, tmp_path, Runtime(remat=remat))

        def loss(x, ours=ours):
            return jnp.sum(ours.module.apply({"params": ours.params}, x)[0] * weight)

        assert_close(jax.jit(jax.grad(loss))(images), wanted, f"gradient with remat {remat}")


@pytest.mark.parametrize(
    ("architecture", "config", "count"),
    [
        (ARCHITECTURE, DINOv2Config.large(), 304_368_640),  # facebook/dinov2-large
        (ARCHITECTURE, DINOv2Config.giant(), 1_136_480_768),  # facebook/dinov2-giant
        (ARCHITECTURE_WITH_REGISTERS, DINOv2Config.large_with_registers(), 304_368_640 + 4 * 1024),
    ],
)
def test_full_size(architecture, config, count):
    params = architecture.abstract(config)
    assert parameter_count(params) == count
    images = jax.ShapeDtypeStruct((2, 224, 336, 3), "float32")
    features, aux = jax.eval_shape(lambda p, x: DINOv2(config).apply({"params": p}, x), params, images)
    assert features.shape == (2, config.width)
    assert aux["hidden"].shape == (2, 1 + (config.registers or 0) + 16 * 24, config.width)


def test_computes_in_bfloat16(tmp_path):
    options, (height, width) = CASES["registers_enlarged"]
    model, images = reference(**options), noise(1, height, width, 3)
    exact, _ = convert(model, tmp_path)(images)
    got, _ = convert(model, tmp_path, Runtime(dtype=jnp.bfloat16))(images)
    assert got.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits (4e-3 a step); equal results would mean that the option is ignored.
    assert 1e-4 < relative_error(got.astype(jnp.float32), exact) < 5e-2


@pytest.mark.parametrize(
    "config", [DINOv2Config.large_with_registers(), DINOv2Config.giant(), DINOv2Config.tiny()], ids=str
)
def test_every_parameter_has_logical_axes_of_its_rank(config):
    params = ARCHITECTURE.abstract(config)
    axes = dinov2.LOGICAL_AXES.tree(params)
    jax.tree.map(lambda leaf, names: pytest.fail(f"{leaf}: {names}") if leaf.ndim != len(names) else None, params, axes)


@pytest.mark.slow
def test_sharded_equals_single_device(tmp_path):
    options, (height, width) = CASES["registers_swiglu_shrunk"]
    ours = convert(reference(**options), tmp_path)
    images = noise(4, height, width, 3)
    wanted, _ = ours(images)
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        sharded = load_pretrained(tmp_path, mesh=mesh).params
        got, _ = jax.jit(lambda p, x: ours.module.apply({"params": p}, x))(sharded, images)
    kernel = sharded["layers"]["mlp"]["gate_up"]["kernel"]
    # 32 * 2 * 2/3 = 42, rounded up to 48; width over fsdp = 2, hidden width over tensor = 2.
    assert kernel.shape == (2, 32, 2, 48)
    assert kernel.addressable_shards[0].data.shape == (2, 16, 2, 24)
    assert relative_error(got, wanted) <= 1e-5


def test_refuses_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="width is 32, wanted a multiple of the number of heads, 3"):
        DINOv2Config(width=32, heads=3)
    with pytest.raises(ValueError, match="hidden_act is 'swish', wanted one of gelu"):
        DINOv2Config(hidden_act="swish")
    config = DINOv2Config.tiny()
    with pytest.raises(ValueError, match="image is 12x16, wanted multiples of the patch side 8"):
        jax.eval_shape(DINOv2(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 12, 16, 3), "float32"))

"""CLIP's towers equal transformers': every layer, pooled and projected features, similarities, gradients."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tests.parity import assert_close, convert, randomise, relative_error
from tests.sizes import small_clip
from uae_jax.models import clip, lora
from uae_jax.models.runtime import Runtime
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights.pretrained import load_pretrained

# Options of transformers. Odd depths, one to four heads, both activations, an epsilon that would show if misread.
VISION = {
    "quick_gelu": dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                       image_size=16, patch_size=8, projection_dim=12),
    "gelu": dict(hidden_size=24, intermediate_size=64, num_hidden_layers=1, num_attention_heads=3, hidden_act="gelu",
                 image_size=30, patch_size=10, projection_dim=20, layer_norm_eps=1e-2),
    "one_head": dict(hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=1,
                     image_size=20, patch_size=4, projection_dim=8),
}  # fmt: skip
TEXT = {
    # The text ends at the highest id, which is 59 in `texts`.
    "legacy_end": dict(hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=3, vocab_size=60,
                       max_position_embeddings=9, projection_dim=12, eos_token_id=2),
    # It ends at the first 57, though 59 is higher, and 57 pads.
    "first_end": dict(hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, vocab_size=60,
                      max_position_embeddings=12, projection_dim=20, eos_token_id=57, hidden_act="gelu"),
    # LongCLIP's length.
    "long": dict(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=60,
                 max_position_embeddings=248, projection_dim=8, eos_token_id=2),
}  # fmt: skip
BOTH = list(zip(VISION, TEXT, strict=True))


def vision_model(case, projected=True):
    """A small image tower of transformers with noise in every parameter."""
    kind = transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel
    torch.manual_seed(0)
    return randomise(kind(transformers.CLIPVisionConfig(**VISION[case])), seed=1)


def text_model(case, projected=True):
    """A small text tower of transformers with noise in every parameter."""
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    torch.manual_seed(0)
    return randomise(kind(transformers.CLIPTextConfig(**TEXT[case])), seed=1)


def clip_model(vision, text):
    """Both; the projection is that of the top, the towers' own values are wrong on purpose."""
    options = dict(vision_config=VISION[vision] | {"projection_dim": 5}, text_config=TEXT[text] | {"projection_dim": 7})
    torch.manual_seed(0)
    return randomise(transformers.CLIPModel(transformers.CLIPConfig(**options, projection_dim=12)), seed=1)


def images(case, batch=2):
    side = VISION[case]["image_size"]
    return np.random.default_rng(2).standard_normal((batch, side, side, 3)).astype(np.float32)


def texts(case, batch=3, length=None):
    """Token ids below 50, each row ending elsewhere, in 57 and in 59, padded with 57."""
    length = length or TEXT[case]["max_position_embeddings"]
    tokens = np.random.default_rng(3).integers(3, 50, (batch, length))
    for row in range(batch):
        end = length - 1 - 2 * row
        tokens[row, end:] = 57
        tokens[row, end - 1] = 59
        tokens[row, end - 3] = 57
    return tokens.astype(np.int32)


def pixels(x):
    return torch.as_tensor(x).permute(0, 3, 1, 2)


@pytest.mark.parametrize("case", VISION)
def test_vision_equals_transformers_layer_by_layer(case, tmp_path):
    model, x = vision_model(case), images(case)
    ours = convert(model, tmp_path)
    with torch.no_grad():
        wanted = model(pixels(x), output_hidden_states=True)
        pooled = model.vision_model(pixels(x)).pooler_output
    (features, aux), named = ours.with_intermediates(x)

    depth = VISION[case]["num_hidden_layers"]
    layers = named["layers"]["hidden"][0]
    assert len(layers) == depth == len(wanted.hidden_states) - 1
    for i, hidden in enumerate(wanted.hidden_states[1:]):
        assert_close(layers[i], hidden, f"layer {i}")
    assert_close(aux["hidden"], wanted.last_hidden_state, "hidden")
    assert_close(aux["penultimate"], wanted.hidden_states[-2], "penultimate")
    assert_close(aux["pooled"], pooled, "pooled")
    assert features.shape == (2, VISION[case]["projection_dim"])
    assert_close(features, wanted.image_embeds, "features")


@pytest.mark.parametrize("case", TEXT)
def test_text_equals_transformers_layer_by_layer(case, tmp_path):
    model, tokens = text_model(case), texts(case)
    ours = convert(model, tmp_path)
    with torch.no_grad():
        wanted = model(torch.as_tensor(tokens), output_hidden_states=True)
        pooled = model.text_model(torch.as_tensor(tokens)).pooler_output
    (features, aux), named = ours.with_intermediates(tokens)

    for i, hidden in enumerate(wanted.hidden_states[1:]):
        assert_close(named["layers"]["hidden"][0][i], hidden, f"layer {i}")
    assert_close(aux["hidden"], wanted.last_hidden_state, "hidden")
    assert_close(aux["penultimate"], wanted.hidden_states[-2], "penultimate")
    assert_close(aux["pooled"], pooled, "pooled")
    assert features.shape == (3, TEXT[case]["projection_dim"])
    assert_close(features, wanted.text_embeds, "features")
    # `texts` puts a 59 right before each row's last run of 57, and a 57 two places before that.
    length = tokens.shape[1]
    ends = [length - (2 if case != "first_end" else 4) - 2 * row for row in range(3)]
    for row, end in enumerate(ends):
        np.testing.assert_array_equal(aux["pooled"][row], aux["hidden"][row, end])


def test_padding_mask_of_transformers_changes_nothing_before_the_end(tmp_path):
    # Why the text tower takes no mask: it is causal, and nothing behind the end token is read.
    model, tokens = text_model("first_end"), texts("first_end", length=8)
    mask = np.ones_like(tokens)
    for row in range(3):
        mask[row, 7 - 2 * row + 1 :] = 0
    assert mask.min() == 0
    with torch.no_grad():
        wanted = model(torch.as_tensor(tokens), attention_mask=torch.as_tensor(mask)).text_embeds
    assert_close(convert(model, tmp_path)(tokens)[0], wanted)


@pytest.mark.parametrize("vision, text", BOTH[1:])
def test_similarities_equal_transformers(vision, text, tmp_path):
    model = clip_model(vision, text)
    ours = convert(model, tmp_path)
    x, tokens = images(vision), texts(text)
    with torch.no_grad():
        wanted = model(torch.as_tensor(tokens), pixels(x))
    logits, aux = ours(x, tokens)
    assert logits.shape == (2, 3)
    assert_close(logits, wanted.logits_per_image, "logits")
    assert_close(aux["image"], wanted.image_embeds, "image vectors")
    assert_close(aux["text"], wanted.text_embeds, "text vectors")


def test_towers_without_projection_end_at_the_pooled_token(tmp_path):
    model, x = vision_model("quick_gelu", projected=False), images("quick_gelu")
    with torch.no_grad():
        wanted = model(pixels(x)).pooler_output
    features, aux = convert(model, tmp_path / "vision")(x)
    assert features is not None and features.shape == (2, 32)
    assert_close(features, wanted)
    np.testing.assert_array_equal(features, aux["pooled"])

    model, tokens = text_model("first_end", projected=False), texts("first_end")
    with torch.no_grad():
        wanted = model(torch.as_tensor(tokens)).pooler_output
    features, aux = convert(model, tmp_path / "text")(tokens)
    assert features.shape == (3, 32)
    assert_close(features, wanted)


def test_gradient_to_the_pixels_equals_pytorch(tmp_path):
    # The reward is differentiated through this tower, down to the painted image; layers are recomputed on the way.
    model, x = vision_model("quick_gelu"), images("quick_gelu")
    ours = convert(model, tmp_path, Runtime(remat="full"))
    weights = np.random.default_rng(4).standard_normal((2, 12)).astype(np.float32)
    leaf = pixels(x).clone().requires_grad_()
    (model(leaf).image_embeds * torch.as_tensor(weights)).sum().backward()
    got = jax.jit(jax.grad(lambda x: jnp.sum(ours(x)[0] * weights)))(x)
    assert_close(got, leaf.grad.permute(0, 2, 3, 1))


@pytest.mark.slow
def test_sharded_equals_single_device(tmp_path):
    model = clip_model("quick_gelu", "first_end")
    ours = convert(model, tmp_path)
    x, tokens = images("quick_gelu", batch=4), texts("first_end", batch=4)
    wanted, _ = ours(x, tokens)
    mesh = make_mesh(2, 2, 2)
    params = load_pretrained(tmp_path, mesh=mesh).params
    # [3, 32, 4, 8] with D over fsdp and heads over tensor.
    assert params["vision"]["layers"]["attn"]["q"]["kernel"].sharding.shard_shape((3, 32, 4, 8)) == (3, 16, 2, 8)
    with jax.set_mesh(mesh):
        got, _ = jax.jit(ours.module.apply)({"params": params}, x, tokens)
    # Sums over shards in another order: rounding only.
    assert relative_error(got, wanted) <= 1e-5


def test_bfloat16_keeps_the_direction(tmp_path):
    # bfloat16 has 8 bits: 0.4 % for each operation, so a few per cent after three layers, and a cosine beyond 0.99.
    model, x = vision_model("quick_gelu"), images("quick_gelu")
    exact = convert(model, tmp_path)
    coarse = dataclasses.replace(exact, module=clip.CLIPVision(exact.config, Runtime(dtype=jnp.bfloat16)))
    a, b = np.asarray(exact(x)[0]), np.asarray(coarse(x)[0])
    assert b.dtype == jnp.bfloat16
    b = b.astype(np.float32)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert (cosine > 0.99).all() and not np.array_equal(a, b)


def test_adapters_reach_every_linear_layer():
    config = small_clip()
    params = jax.eval_shape(clip.CLIP(config).init, jax.random.key(0), *clip.example_inputs(config))["params"]
    layer = ["attn/k", "attn/out", "attn/q", "attn/v", "mlp/down", "mlp/up"]
    wanted = [f"{tower}/layers/{name}" for tower in ("text", "vision") for name in layer]
    wanted += ["text/projection", "vision/patch", "vision/projection"]
    assert lora.target_paths(params, lora.LoRAConfig()) == sorted(wanted)


def test_adapter_on_split_heads_equals_merged_weights(tmp_path):
    ours, x = convert(vision_model("quick_gelu"), tmp_path), images("quick_gelu")
    options = lora.LoRAConfig(rank=2, alpha=1.0, targets=(r"layers/attn/[qkv]",))
    adapter = lora.init(jax.random.key(0), ours.params, options)
    adapter = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape), adapter)
    adapted, _ = ours(x, lora=lora.collection(adapter, options))
    assert relative_error(adapted, ours(x)[0]) > 1e-2
    ours.params = lora.merge(ours.params, adapter, options)
    assert_close(adapted, ours(x)[0])


@pytest.mark.parametrize("shape", [(2, 16, 24, 3), (2, 24, 24, 3), (2, 3, 16, 16), (16, 16, 3)])
def test_images_of_another_size_are_refused(shape):
    config = clip.CLIPVisionConfig(width=8, hidden=8, depth=1, heads=1, image_size=16, patch_size=8)
    with pytest.raises(ValueError, match=r"images have shape .*, wanted \[B, 16, 16, 3\]; resize"):
        clip.CLIPVision(config).init(jax.random.key(0), jnp.zeros(shape))


def test_text_beyond_the_position_table_is_refused():
    config = clip.CLIPTextConfig(width=8, hidden=8, depth=1, heads=1, vocab=10, positions=6)
    with pytest.raises(ValueError, match="text has 7 tokens, wanted at most 6; truncate"):
        clip.CLIPText(config).init(jax.random.key(0), jnp.zeros((1, 7), int))


def test_sizes_that_do_not_fit_are_refused():
    tiny = small_clip()
    with pytest.raises(ValueError, match="width is 30, wanted a multiple of the 4 heads"):
        dataclasses.replace(tiny.text, width=30, heads=4)
    with pytest.raises(ValueError, match=r"activation is 'relu', wanted one of gelu"):
        dataclasses.replace(tiny.text, activation="relu")
    with pytest.raises(ValueError, match="image_size is 30, wanted a multiple of the patch side 8"):
        dataclasses.replace(tiny.vision, image_size=30)
    with pytest.raises(ValueError, match=r"16 \(vision\) and 9 \(text\), wanted 16 both"):
        clip.CLIPConfig(tiny.vision, dataclasses.replace(tiny.text, projection=9), 16)


def test_positions_are_stretched_as_for_longclip():
    # Two columns that the eye can follow: p and p squared.
    p = np.arange(77, dtype=np.float32)
    got = np.asarray(clip.interpolate_positions(jnp.stack([jnp.array(p), jnp.array(p**2)], axis=1)))
    assert got.shape == (248, 2)  # 20 + 4 * 57
    np.testing.assert_array_equal(got[:20, 0], p[:20])
    # From position 20 on a step is a quarter: 20, 20.25, ..., 76. The last goes on to 76.75; repeating it would give
    # 76, and stretching the kept ones too would give 5 at place 20.
    np.testing.assert_allclose(got[20:, 0], 20 + np.arange(228) / 4, rtol=1e-6)
    # Squares are joined by straight lines: halfway between 20 and 21 lies (400 + 441) / 2 = 420.5, not 420.25.
    np.testing.assert_allclose(got[20:25, 1], [400, 410.25, 420.5, 430.75, 441], rtol=1e-6)
    # The last four go on by quarters of 76^2 - 75^2 = 5776 - 5625 = 151.
    np.testing.assert_allclose(got[244:, 1], [5776, 5813.75, 5851.5, 5889.25], rtol=1e-6)


def test_positions_are_stretched_by_other_factors():
    table = jnp.array([[0.0], [1.0], [3.0]])
    np.testing.assert_allclose(clip.interpolate_positions(table, 2, 2)[:, 0], [0, 1, 3, 4])  # 3 + (3 - 1) / 2
    np.testing.assert_allclose(clip.interpolate_positions(table, 0, 2)[:, 0], [0, 0.5, 1, 2, 3, 4])
    np.testing.assert_array_equal(clip.interpolate_positions(table, 1, 1), table)
    assert clip.interpolate_positions(table.astype(jnp.bfloat16), 1).dtype == jnp.bfloat16
    for keep, factor in ((3, 4), (-1, 4), (1, 0)):
        with pytest.raises(ValueError, match=f"keep is {keep} and factor {factor}, wanted"):
            clip.interpolate_positions(table, keep, factor)


def test_longclip_differs_from_clip_in_its_positions_only():
    shapes = []
    for config in (clip.clip_l14(), clip.longclip_l14()):
        model = clip.CLIP(config)
        tree = jax.eval_shape(model.init, jax.random.key(0), *clip.example_inputs(config))["params"]
        shapes.append({k: v.shape for k, v in traverse_util.flatten_dict(tree, sep="/").items()})
    assert shapes[0].keys() == shapes[1].keys()
    assert {k for k in shapes[0] if shapes[0][k] != shapes[1][k]} == {"text/positions"}
    assert shapes[1]["text/positions"] == (248, 768)

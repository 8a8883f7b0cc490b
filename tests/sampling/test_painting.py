"""Painting against diffusers' StableDiffusion3Pipeline, fed the same conditioning and noise."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests import published
from tests.parity import convert
from uae_jax.models.sd3 import SD3Transformer
from uae_jax.parallel.mesh import make_mesh
from uae_jax.sampling import flow, painting
from uae_jax.sampling.conditioning import Conditioning

TEXT, WIDTH, POOLED = 7, 24, 32


@dataclasses.dataclass
class Case:
    pipeline: object
    decoder: object
    vae: object


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    root = tmp_path_factory.mktemp("painting")
    originals = published.write(root, lora=False)
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=originals.decoder,
        vae=originals.vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **dict.fromkeys(
            ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    return Case(pipeline, convert(originals.decoder, root / "a"), convert(originals.vae, root / "b"))


def inputs(seed, rows, height, width):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    context, negative = normal(rows, TEXT, WIDTH), normal(rows, TEXT, WIDTH)
    return context, negative, normal(POOLED), normal(rows, 16, height // 8, width // 8)


def ours(case, context, negative, pooled, latents, steps, guidance, lengths=None, pad=0):
    """Paints with our code; `pad` adds positions that `lengths` hides."""

    def conditioning(x):
        if x is None:
            return None
        x = jnp.pad(jnp.asarray(x), ((0, 0), (0, pad), (0, 0)), constant_values=9.0)
        return Conditioning(x, jnp.full(x.shape[0], TEXT) if lengths is None else jnp.asarray(lengths))

    paint = jax.jit(
        lambda p, v, s, *args: painting.to_uint8(painting.paint(case.decoder.module, p, case.vae.module, v, s, *args))
    )
    noise = jnp.asarray(latents.transpose(0, 2, 3, 1))
    return np.asarray(
        paint(
            {"params": case.decoder.params},
            case.vae.params,
            flow.make_schedule(steps),
            jnp.asarray(pooled),
            conditioning(context),
            conditioning(negative if guidance > 1 else None),
            jnp.float32(guidance),
            noise,
        )
    )


def theirs(case, context, negative, pooled, latents, steps, guidance):
    rows, _, h, w = latents.shape
    pooled = torch.tensor(pooled).expand(rows, -1)
    images = case.pipeline(
        prompt_embeds=torch.tensor(context),
        negative_prompt_embeds=torch.tensor(negative),
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=pooled,
        latents=torch.tensor(latents),
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=h * 8,
        width=w * 8,
        output_type="np",
    ).images
    return (images * 255).round().astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(("steps", "height", "width"), [(10, 128, 128), (28, 96, 160)])
def test_images_equal_those_of_diffusers(case, steps, height, width, guidance):
    context, negative, pooled, latents = inputs(steps, 2, height, width)
    wanted = theirs(case, context, negative, pooled, latents, steps, guidance)
    got = ours(case, context, negative, pooled, latents, steps, guidance)
    assert got.shape == wanted.shape == (2, height, width, 3)
    assert wanted.std() > 20  # a picture with contrast, not a flat field that anything would match
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 2
    # Negative control: another guidance gives another image.
    other = ours(case, context, negative, pooled, latents, steps, guidance + 1.0)
    assert np.abs(other.astype(int) - wanted.astype(int)).max() > 2


@pytest.mark.slow
def test_positions_behind_the_length_are_as_if_they_were_not_there(case):
    context, negative, pooled, latents = inputs(3, 2, 64, 64)
    plain = ours(case, context, negative, pooled, latents, 4, 5.0)
    padded = ours(case, context, negative, pooled, latents, 4, 5.0, pad=9)
    assert np.abs(plain.astype(int) - padded.astype(int)).max() <= 1
    seen = ours(case, context, negative, pooled, latents, 4, 5.0, pad=9, lengths=[TEXT + 9] * 2)
    assert np.abs(plain.astype(int) - seen.astype(int)).max() > 1


@pytest.mark.slow
def test_a_row_does_not_depend_on_its_batch(case):
    context, negative, pooled, latents = inputs(4, 3, 64, 64)
    whole = ours(case, context, negative, pooled, latents, 4, 5.0)
    alone = ours(case, context[1:2], negative[1:2], pooled, latents[1:2], 4, 5.0)
    assert np.abs(whole[1:2].astype(int) - alone.astype(int)).max() <= 1


def test_the_hoisted_modulation_is_that_of_every_step(case):
    schedule = flow.make_schedule(3)
    _, _, pooled, _ = inputs(5, 1, 64, 64)
    module: SD3Transformer = case.decoder.module
    variables = {"params": case.decoder.params}
    table = painting.modulations(module, variables, schedule, jnp.asarray(pooled))
    for step in range(3):
        one = module.apply(variables, schedule.timestep[step][None], jnp.asarray(pooled)[None], method="modulation")
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), painting.at_step(table, step), one
        )


def test_guidance_leads_away_from_the_negative_row_by_row():
    context = np.arange(2.0)[:, None] + np.ones((2, 3))  # of the positives; the negatives' is ten times that
    told, away = (Conditioning(jnp.asarray(x, jnp.float32), jnp.array([3, 3])) for x in (context, 10 * context))
    x, level = jnp.array([5.0, 7.0]), jnp.array([0.5, 0.25])

    def denoise(context, lengths, scale, x, level):
        return scale * context[:, 0] * x * level

    for guidance, wanted in ((0.0, 10.0), (1.0, 1.0), (3.0, -17.0)):  # 10 + guidance (1 - 10)
        got = painting.under_guidance(told, away, guidance)(denoise, 1.0, x, level)
        np.testing.assert_allclose(got, wanted * np.array([1 * 5 * 0.5, 2 * 7 * 0.25]))
    np.testing.assert_allclose(painting.under_guidance(told)(denoise, 1.0, x, level), [2.5, 3.5])
    for learn, wanted in ((True, -17.0), (False, 3.0)):  # 3 of the positive branch, less 20 of the negative
        guided = painting.under_guidance(told, away, 3.0, learn)
        slope = jax.grad(lambda scale, guided=guided: guided(denoise, scale, x, level)[0])(1.0)
        np.testing.assert_allclose(slope, wanted * 2.5)


def test_a_step_moves_nothing_between_devices_that_hold_different_images(case):
    schedule, pooled = flow.make_schedule(8), jnp.asarray(inputs(5, 1, 64, 64)[2])
    mesh = make_mesh(data=8)
    with jax.set_mesh(mesh):
        make_table = jax.jit(lambda p, s, v: painting.modulations(case.decoder.module, {"params": p}, s, v))
        table = make_table(case.decoder.params, schedule, pooled)
        rows = jax.device_put(jnp.arange(32.0).reshape(8, 4), NamedSharding(mesh, PartitionSpec("data")))
        joined = jax.jit(lambda x: painting._interleave(x, -x)).lower(rows).compile()
    # 8 steps would divide among 8 devices, and each step would gather the whole table again.
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(table))
    assert not re.findall("all-gather|all-to-all|all-reduce|collective-permute", joined.as_text())
    np.testing.assert_array_equal(joined(rows)[2:4], [rows[1], -rows[1]])


@pytest.mark.slow
def test_tiles_cover_everything_and_blend_to_the_whole(case, monkeypatch):
    # With a tile as large as the image there is one tile; smaller tiles see less context, so only roughly agree.
    _, _, _, latents = inputs(6, 1, 192, 128)
    z = jnp.asarray(latents.transpose(0, 2, 3, 1))
    whole = painting.decode(case.vae.module, case.vae.params, z)
    monkeypatch.setattr(painting, "TILE", 96)
    tiled = painting.decode(case.vae.module, case.vae.params, z)
    assert tiled.shape == whole.shape == (1, 192, 128, 3)
    assert np.all(np.isfinite(tiled))
    assert float(jnp.abs(tiled - whole).mean()) < 0.5 * float(whole.std())


@pytest.mark.parametrize(("length", "side"), [(130, 128), (192, 128), (256, 128), (100, 128), (12, 5)])
def test_tiles_reach_from_edge_to_edge_and_overlap(length, side):
    size, starts = painting._tiles(length, side)
    assert starts[0] == 0
    assert starts[-1] + size == length
    assert all(b - a <= size * (1 - painting.OVERLAP) + 1 for a, b in itertools.pairwise(starts))


def test_pixels_are_rounded_as_diffusers_does():
    # -1 -> 0, 0 -> 127.5 -> 128 (to even), 1 -> 255, and beyond the range is clipped.
    np.testing.assert_array_equal(painting.to_uint8(jnp.array([-1.0, 0.0, 1.0, 3.0])), [0, 128, 255, 255])

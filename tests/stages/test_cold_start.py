"""The semantic reconstruction loss on a small random checkpoint: its gradient, and what masks are for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("peft")

from tests.stages import judges, running
from uae_jax.data.records import Sample
from uae_jax.stages.cold_start import ColdStart, ColdStartSettings
from uae_jax.stages.loop_stage import PaintSettings
from uae_jax.stages.uae_towers import TextSettings

pytestmark = pytest.mark.slow

STEPS = 3


def samples(captions=("a red circle", "two")):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in captions]
    return [Sample(str(i), image, text, "text") for i, (image, text) in enumerate(zip(pixels, captions, strict=True))]


@pytest.fixture(scope="module")
def settings(uae_checkpoint, tmp_path_factory):
    return ColdStartSettings(
        model=str(uae_checkpoint[0]),
        reward=judges.write(tmp_path_factory.mktemp("scorers")),
        text=TextSettings(max_tokens=14, negative="bad", max_pixels=28 * 28 * 4),
        paint=PaintSettings(steps=STEPS, guidance=2.0),
    )


@pytest.fixture(scope="module")
def run(settings):
    return running.start(ColdStart(settings))


def test_the_loss_is_one_less_the_reward_and_reaches_all_three_towers(run):
    value, aux, grads = run(samples())
    assert value == pytest.approx(1 - float(aux.metrics["reward"]), abs=1e-6)
    np.testing.assert_allclose(np.mean(aux.per_example), value, rtol=1e-6)
    assert {name: set(tree) for name, tree in grads.items()} == {
        "encoder": {"lora"},
        "projector": {"params"},
        "decoder": {"lora"},
    }
    for tree in grads.values():
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(tree))
        assert max(np.abs(x).max() for x in jax.tree.leaves(tree)) > 0


def test_the_gradient_is_the_slope_of_the_loss(run):
    # Through hidden states, projector, every denoising step, the VAE and the scorer: along the gradient itself, central
    # differences of the loss. float32 leaves some three digits.
    _, _, grads = run(samples())
    norm = float(jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(grads))))
    step = 2e-3
    ends = [jax.tree.map(lambda p, g, s=sign: p + s * step * g / norm, run.parts.params, grads) for sign in (1, -1)]
    up, down = (run(samples(), params=params)[0] for params in ends)
    assert (up - down) / (2 * step) == pytest.approx(norm, rel=0.03)


def test_fewer_gradient_steps_leave_the_loss_and_shorten_the_gradient(run, settings):
    whole, _, grads = run(samples())
    last = running.start(ColdStart(dataclasses.replace(settings, gradient_steps=1)))
    value, _, short = last(samples())
    assert value == pytest.approx(whole, abs=1e-6)
    assert running.difference(short, grads) > 0.05
    along = sum((a * b).sum() for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(grads), strict=True))
    assert along > 0


def test_captions_of_different_lengths_share_a_batch(run):
    # The shorter one among longer ones is what it is by itself: nothing behind its end is seen.
    together = run(samples(("two", "a red circle")))[1].per_example[0]
    beside = run(samples(("two", "a")))[1].per_example[0]
    assert float(together) == pytest.approx(float(beside), abs=1e-6)


def test_a_caption_that_is_too_long_is_cut_and_counted(run):
    batch = run.stage.collate(samples(("x" * 50, "two")))
    assert batch["lengths"].tolist()[0] == 14 and batch["stopped"].tolist() == [False, True]
    _, metrics = run.stage.prepare({}, {}, {}, batch, jax.random.key(0))
    assert metrics["truncated"] == 0.5


def test_what_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match=r"gradient_steps is 9, wanted 0 \(all\) to 3"):
        ColdStart(dataclasses.replace(settings, gradient_steps=9))
    base = dataclasses.replace(settings, text=dataclasses.replace(settings.text, conditioning="base"))
    with pytest.raises(ValueError, match="without its adapter, the encoder has no gradient"):
        ColdStart(base)

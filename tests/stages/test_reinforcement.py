"""Both reinforcement stages on a small random checkpoint, adapters and all: rollout and loss fit each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("peft")

from tests.stages import judges, meshes, running
from uae_jax.averages import divided
from uae_jax.data.records import Sample
from uae_jax.defaults import Defaults
from uae_jax.rewards.reconstruction import RewardPart
from uae_jax.rl.advantages import AdvantageConfig
from uae_jax.rl.surrogate import ClipConfig
from uae_jax.rl.tokens import OverlongConfig
from uae_jax.sampling import widths
from uae_jax.stages.flow_grpo_settings import UnderstandingForGenSettings, preset
from uae_jax.stages.gen_for_understanding import GenForUnderstanding, GenForUnderstandingSettings
from uae_jax.stages.loop_stage import PaintSettings
from uae_jax.stages.uae_towers import TextSettings
from uae_jax.stages.understanding_for_gen import UnderstandingForGen

pytestmark = pytest.mark.slow

IMAGES, GROUP = 2, 3


def broken(reference, reconstruction):
    """A reward that is no number for the first image."""
    return jnp.where(jnp.arange(len(reference)) < GROUP, jnp.nan, 0.5 * reconstruction.mean((1, 2, 3)))


def samples(count=IMAGES):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(count)]
    return [Sample(f"image {i}", image, "a red circle", "text") for i, image in enumerate(pixels)]


@pytest.fixture(scope="module")
def common(uae_checkpoint, tmp_path_factory):
    """Settings of both stages. Rewards of random models differ by little, so the floor of their deviation is 0."""
    return {
        "model": str(uae_checkpoint[0]),
        "reward": judges.write(tmp_path_factory.mktemp("scorers")),
        "text": TextSettings(max_tokens=6, negative="bad", max_pixels=28 * 28 * 4),
        "group": GROUP,
        "advantage": AdvantageConfig(floor=0.0),
    }


def g4u(common, **changes):
    settings = {"paint": PaintSettings(steps=2, guidance=2.0), "learn_truncated": True, "kl": 0.01, **changes}
    return GenForUnderstanding(GenForUnderstandingSettings(**(common | settings)))


def u4g(common, **changes):
    settings = {"paint": PaintSettings(steps=4, guidance=2.0), "updates": 1, "kl": 0.01, **changes}
    return UnderstandingForGen(UnderstandingForGenSettings(**(common | settings)))


@dataclasses.dataclass
class Rolled:
    """A stage, one rollout of it, and its compiled loss."""

    run: running.Running
    rollout: dict
    metrics: dict

    @functools.cached_property
    def program(self):
        stage = self.run.stage
        return running.jit(jax.value_and_grad(stage.loss, has_aux=True))

    def loss(self, params=None, **changes):
        """Loss, aux and gradient of the rollout; parts of it may be replaced."""
        parts = self.run.parts
        with jax.set_mesh(self.run.mesh):
            (value, aux), grads = self.program(
                parts.params if params is None else params,
                parts.state,
                parts.frozen,
                {**self.rollout, **changes},
                jax.random.key(1),
            )
        return float(value), aux.replace(metrics=divided(aux.metrics)), grads


def roll(stage):
    run = running.start(stage)
    parts, batch = run.parts, run.place(samples())
    with jax.set_mesh(run.mesh):
        rollout, metrics = running.jit(stage.prepare)(parts.params, parts.state, parts.frozen, batch, jax.random.key(0))
    return Rolled(run, rollout, metrics)


@pytest.fixture(scope="module")
def captions(common):
    return roll(g4u(common))


@pytest.fixture(scope="module")
def paintings(common):
    # Paintings one at a time, so the rollout's batch is not that of the loss (oracle 6).
    # And its densities are the rollout's, not the loss's own.
    return roll(u4g(common, paint=PaintSettings(steps=4, guidance=2.0, memory_gb=1e-6), old_logprob="recorded"))


def moved(params, size=0.05):
    """Other parameters nearby."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return tree.unflatten([x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


@pytest.mark.parametrize("stage", ["captions", "paintings"])
def test_before_any_update_every_ratio_is_one(stage, request):
    # Oracle 6: what was recorded while writing token by token, or painting, against what the loss computes.
    rolled = request.getfixturevalue(stage)
    _, aux, _ = rolled.loss()
    assert abs(float(aux.metrics["ratio_min"]) - 1) < 1e-5 and abs(float(aux.metrics["ratio_max"]) - 1) < 1e-5
    assert aux.metrics["clip_high"] == aux.metrics["clip_low"] == 0
    _, aux, _ = rolled.loss(moved(rolled.run.parts.params))
    assert abs(float(aux.metrics["ratio_max"]) - 1) > 1e-4  # a policy that moved is another


def behind(hidden, width=112):
    """Hidden states with things that mean nothing behind them, most of which are cut off again."""
    more = jax.random.normal(jax.random.key(4), (*hidden.shape[:1], width - hidden.shape[1], hidden.shape[2]))
    assert hidden.shape[1] <= widths.widths(width)[0]
    return jnp.concatenate([hidden, 10 * more], axis=1)


def test_what_lies_behind_captions_is_neither_learnt_from_nor_painted(paintings):
    """To rounding: texts are a few places longer, of which no more are seen."""
    value, _, grads = paintings.loss()
    wider, _, again = paintings.loss(hidden=behind(paintings.rollout["hidden"]))
    assert wider == pytest.approx(value, abs=1e-6)
    assert meshes.relative(again, grads) < 1e-4
    stage, parts, batch = paintings.run.stage, paintings.run.parts, paintings.rollout
    noise = jax.random.normal(jax.random.key(0), (IMAGES, *stage.uae.latent_shape(batch["images"])))

    def paint(hidden):
        return stage.paint(parts.params, parts.frozen, stage.schedule(2), hidden, batch["length"], noise)

    with jax.set_mesh(paintings.run.mesh):
        pictures = [running.jit(paint)(hidden) for hidden in (batch["hidden"], behind(batch["hidden"]))]
    np.testing.assert_allclose(*pictures, atol=1e-5)


@pytest.mark.parametrize("stage", ["captions", "paintings"])
def test_the_reference_is_where_the_stage_started(stage, request):
    # Oracle 9: divergence 0 at first, though the checkpoint's adapter is not zero, and more than 0 elsewhere.
    rolled = request.getfixturevalue(stage)
    assert float(rolled.loss()[1].metrics["kl"]) == pytest.approx(0, abs=1e-9)
    assert float(rolled.loss(moved(rolled.run.parts.params))[1].metrics["kl"]) > 1e-7


@pytest.mark.parametrize("stage, tower", [("captions", "encoder"), ("paintings", "decoder")])
def test_only_the_adapter_is_trained_and_there_is_no_second_copy_of_the_weights(stage, tower, request):  # oracle 10
    rolled = request.getfixturevalue(stage)
    _, _, grads = rolled.loss()
    assert set(grads) == {tower} and set(grads[tower]) == {"lora"}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert max(np.abs(x).max() for x in jax.tree.leaves(grads)) > 0
    frozen = rolled.run.parts.frozen[tower]
    assert set(frozen) == {"params", "reference"}  # the adapter's own start, and the base weights once
    jax.tree.map(np.testing.assert_array_equal, frozen["reference"], rolled.run.parts.params[tower]["lora"])


@pytest.mark.parametrize("stage", ["captions", "paintings"])
def test_the_first_gradient_is_that_of_reinforce(stage, request, common):
    # Oracle 7: at ratio 1, d/dp of -r A is -A d log p. Turned round: with all advantages negated, so is the gradient.
    rolled = request.getfixturevalue(stage)
    one, other = rolled.loss()[2], rolled.loss(advantage=-rolled.rollout["advantage"])[2]
    assert running.difference(jax.tree.map(jnp.negative, other), one) < 1e-4


@pytest.mark.parametrize("stage", ["captions", "paintings"])
def test_rewards_of_a_group_have_no_sum(stage, request):  # oracle 8
    rolled = request.getfixturevalue(stage)
    # Of random models rewards differ in their last digits only, so their mean is known to a hundredth of that.
    advantage = np.asarray(rolled.rollout["advantage"])
    np.testing.assert_allclose(advantage.sum(axis=1) / np.abs(advantage).max(), 0, atol=1e-2)
    assert float(rolled.metrics["reward_std"]) > 0
    assert {"reward/clip", "held_out/dinov2"} <= set(rolled.metrics)


def test_behind_its_end_a_caption_does_not_count(captions):
    # Oracle 12: other tokens and densities behind the end, nothing changes.
    lengths = jnp.minimum(captions.rollout["lengths"], 4)
    there = jnp.arange(captions.rollout["tokens"].shape[2]) < lengths[..., None]
    cut = {"lengths": lengths, "weight": jnp.where(there, captions.rollout["weight"], 0.0)}
    one = captions.loss(**cut)
    values = {"tokens": 7, "old": -3.0}
    noise = {name: jnp.where(there, captions.rollout[name], value) for name, value in values.items()}
    other = captions.loss(**cut, **noise)
    assert one[0] == pytest.approx(other[0], abs=1e-7)
    assert running.difference(other[2], one[2]) < 1e-5


def test_paintings_of_a_caption_share_their_first_latent_and_nothing_else(paintings):
    path = np.asarray(paintings.rollout["path"])  # [B, G, W + 1, h w Z]
    np.testing.assert_array_equal(path[:, :1, 0], path[:, 1:2, 0])
    assert (np.abs(path[:, 0, 1] - path[:, 1, 1]).mean(axis=1) > 0.1).all()
    assert np.abs(path[0, 0, 0] - path[1, 0, 0]).mean() > 0.1


def test_length_costs_advantage_and_leaves_the_reward(common):
    # A limit of 7, of which the last 6 cost: one token nothing, four half of 0.2, seven all of it.
    stage = g4u(common, overlong=OverlongConfig(tokens=6, price=0.2))
    reward, lengths = jnp.array([[0.5, 0.6, 0.7]]), jnp.array([[1, 4, 7]])
    advantage, metrics = stage.advantages(reward, lengths)
    np.testing.assert_allclose(advantage, 0, atol=1e-3)  # 0.5 each
    assert metrics["reward"] == pytest.approx(0.6) and metrics["overlong_price"] == pytest.approx(0.1)
    free, metrics = g4u(common).advantages(reward, lengths)
    assert free[0, 0] < -1 and free[0, 2] > 1 and "overlong_price" not in metrics


def test_captions_of_an_image_are_painted_from_one_latent(captions):
    # Equal captions then have equal rewards; with noise of their own they would not.
    tokens, reward = (np.asarray(captions.rollout[name]) for name in ("tokens", "reward"))
    assert np.ptp(reward, axis=1).max() > 0
    assert tokens.shape[:2] == (IMAGES, GROUP) and len(np.unique(tokens.reshape(-1, tokens.shape[2]), axis=0)) > 1


@pytest.mark.parametrize(
    "make", [functools.partial(g4u, kl=0.0), functools.partial(u4g, kl=0.0)], ids=["captions", "paintings"]
)
def test_a_reward_that_is_no_number_names_its_image(make, common):
    mine = (RewardPart("mine", function=f"{__name__}.broken"),)
    rolled = roll(make(common, reward=mine))
    value, aux, _ = rolled.loss()
    assert not np.isfinite(value)  # so the step changes nothing
    assert np.isfinite(np.asarray(aux.per_example)).tolist() == [False, True]


@pytest.mark.parametrize(
    "changes",
    [
        preset("fast", paint={"steps": 5}, window_range=(0, 5), old_logprob="recorded"),
        {"updates": 2},
        {"updates": 2, "dtype": "bfloat16"},
        {"updates": 2, "guard": True, "captions": "data", "kl_form": "exact", "clip": ClipConfig(low=1e-3, high=1e-3)},
    ],
    ids=["fast, recorded", "replay", "replay in bfloat16", "guard on captions of the data"],
)
def test_variants_of_the_painting_stage_start_at_ratio_one(changes, common):
    changes = dict(changes)
    paint = PaintSettings(**changes.pop("paint", {"steps": 4, "guidance": 2.0}))
    clip = changes.get("clip")
    if isinstance(clip, dict):
        changes["clip"] = ClipConfig(**clip)
    rolled = roll(u4g(common, paint=paint, **changes))
    _, aux, grads = rolled.loss()
    assert abs(float(aux.metrics["ratio_min"]) - 1) < 1e-5 and abs(float(aux.metrics["ratio_max"]) - 1) < 1e-5
    assert max(np.abs(x).max() for x in jax.tree.leaves(grads)) > 0


def test_nft_starts_at_the_policy_that_paints(common, tmp_path):
    # Oracle 14: no gap to the old policy; the gradient is 0 where all advantages are, and not otherwise.
    changes = preset("nft")
    rolled = roll(u4g(common, **(changes | {"paint": PaintSettings(steps=3, guidance=2.0)})))
    _, aux, grads = rolled.loss()
    assert aux.metrics["policy_gap"] == 0 and max(np.abs(x).max() for x in jax.tree.leaves(grads)) > 0
    even = rolled.loss(advantage=jnp.zeros((IMAGES, GROUP)))[2]
    # Siblings are looked at with the same noise, so that of equal paintings nothing is left, whatever their advantages:
    # these sum to 0, and what multiplies them is alike.
    alike = rolled.rollout["x0"][:, :1].repeat(GROUP, axis=1)
    same = rolled.loss(x0=alike, advantage=jnp.tile(jnp.array([1.0, 0.5, -1.5]), (IMAGES, 1)))[2]
    none, nothing, some = (max(np.abs(x).max() for x in jax.tree.leaves(tree)) for tree in (even, same, grads))
    assert max(none, nothing) < 1e-5 * max(some, 1e-3)
    state = rolled.run.stage.after_update(moved(rolled.run.parts.params), rolled.run.parts.state, jnp.int32(250))
    # Decay min(0.001 * 250, 0.5) = 1/4: three quarters of the way to the new adapter.
    new, old = moved(rolled.run.parts.params)["decoder"], rolled.run.parts.state["decoder"]
    wanted = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, old, new)
    assert running.difference(state["decoder"], wanted) < 1e-6
    parts = rolled.run.parts
    rolled.run.stage.save(parts.params, parts.state, parts.frozen, tmp_path / "model")
    assert Defaults.of(tmp_path / "model").paint.guidance == 2.0  # the result is painted with as it was trained


def test_what_cannot_be_is_refused(common):
    from uae_jax.stages.towers import TowerConfig

    with pytest.raises(ValueError, match="this stage trains the encoder alone"):
        g4u(common, decoder=TowerConfig(mode="lora"))
    with pytest.raises(ValueError, match="group is 1, updates 1, temperature 1"):
        g4u(common, group=1)
    direct = TowerConfig(mode="lora", full=("final_norm/.*",))
    with pytest.raises(ValueError, match="what is trained directly has no reference"):
        g4u(common, kl=0.1, encoder=direct)
    with pytest.raises(ValueError, match="what is trained directly has no reference"):
        u4g(common, kl=0.1, decoder=direct)
    with pytest.raises(ValueError, match="this stage trains the decoder alone"):
        u4g(common, encoder=TowerConfig(mode="lora"))
    with pytest.raises(ValueError, match=r"a window of 3 does not fit window_range \(0, 2\)"):
        u4g(common, window=3, window_range=(0, 2))
    with pytest.raises(ValueError, match="'recorded' and dtype bfloat16; wanted 'replay', or float32"):
        u4g(common, dtype="bfloat16", old_logprob="recorded")
    with pytest.raises(ValueError, match="nft has 2 updates, wanted 1"):
        u4g(common, **(preset("nft") | {"paint": PaintSettings(steps=3), "updates": 2}))
    with pytest.raises(ValueError, match="same_latent is True, wanted False"):
        u4g(common, **(preset("nft") | {"paint": PaintSettings(steps=3), "same_latent": True}))
    noisy = {"form": "cps", "guard": True, "paint": PaintSettings(steps=4)}  # its last step has no noise
    for change in ({"timestep_fraction": 1.0}, {"window": 2, "window_range": (0, 4)}):
        with pytest.raises(ValueError, match="guard divides by a step's noise"):
            u4g(common, **noisy, **change)
    for change in ({}, {"window": 2, "window_range": (0, 3)}):
        u4g(common, **noisy, **change)
    with pytest.raises(ValueError, match="6 of 4 steps are trained"):
        u4g(common, paint=PaintSettings(steps=4), timestep_fraction=1.5)
    with pytest.raises(ValueError, match="preset is 'slow', wanted one of flow_grpo, fast, nft"):
        preset("slow")

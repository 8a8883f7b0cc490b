"""Flow matching of projector and decoder against PyTorch, and what it leaves alone."""

import dataclasses

import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import jax

from tests.parity import relative_error
from tests.stages import meshes, running
from uae_jax.data.records import Sample
from uae_jax.engine import PaintSettings
from uae_jax.models.qwen2_5_vl.positions import mrope_positions
from uae_jax.parallel.mesh import make_mesh
from uae_jax.stages.pretrain import Pretrain
from uae_jax.stages.pretrain_settings import PretrainSettings
from uae_jax.stages.towers import TowerConfig
from uae_jax.weights import uae

pytestmark = pytest.mark.slow

NEGATIVE = "bad blur"
# One is shorter than the negative prompt, and so is padded for the decoder to see; one is cut at 24 tokens.
CAPTIONS = (
    "a red circle",
    "two blue squares",
    "a cat",
    "a night sky",
    "green grass",
    "a pink star",
    "snowfall",
    "x" * 30,
)
SHIFT, MEAN, STD, DROP = 3.0, 0.2, 0.9, 0.4
KEY = 3


def samples(captions=CAPTIONS, seed=0):
    rng = np.random.default_rng(seed)
    pixels = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in captions]
    return [Sample(str(i), image, text, "text") for i, (image, text) in enumerate(zip(pixels, captions, strict=True))]


@pytest.fixture(scope="module")
def settings(uae_checkpoint):
    return PretrainSettings(
        model=str(uae_checkpoint[0]),
        decoder=TowerConfig(mode="lora"),  # the checkpoint brings adapters; the decoder's is trained on
        posterior="mean",
        logit_mean=MEAN,
        logit_std=STD,
        weighting="cosmap",
        drop=DROP,
        negative=NEGATIVE,
        max_tokens=24,
        token_bucket=32,
        pictures=2,
        paint_steps=2,
        evaluation_sigmas=(0.25, 0.75),
    )


@pytest.fixture(scope="module")
def run(settings):
    return running.start(Pretrain(settings))


def draws(count, latent):
    """What the loss draws for each row from a key of its own: noise, noise levels, who is dropped."""
    keys = [jax.random.split(key, 4) for key in jax.random.split(jax.random.key(KEY), count)]
    normal = np.array([jax.random.normal(key[2]) for key in keys], np.float64)
    u = 1 / (1 + np.exp(-(MEAN + STD * normal)))
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    dropped = np.array([jax.random.uniform(key[3]) for key in keys]) < DROP
    return np.stack([jax.random.normal(key[1], latent) for key in keys]), sigma.astype(np.float32), dropped


def hidden_of(run, originals, tokens, length):
    """The original encoder's last hidden states of one text, padded to a length as the published pipeline does."""
    ids = np.full((1, length), run.stage.prompts.pad_id)
    ids[0, : len(tokens)] = tokens
    valid = np.arange(length)[None] < len(tokens)
    positions, _ = mrope_positions(ids, [[]], valid, run.stage.prompts.config)
    out = originals.encoder(
        input_ids=torch.tensor(ids).long(),
        attention_mask=torch.tensor(valid).long(),
        position_ids=torch.tensor(positions).long(),
        output_hidden_states=True,
    )
    return out.hidden_states[-1]


@torch.no_grad()
def torch_losses(run, originals):
    """Each sample's weighted error, one at a time and without any padding that the decoder should not see."""
    prompts = run.stage.prompts
    pixels = np.stack([sample.image for sample in samples()])
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    vae = originals.vae
    mean = vae.encode(images).latent_dist.mean
    x0 = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    eps, sigma, dropped = draws(len(CAPTIONS), x0.permute(0, 2, 3, 1).shape[1:])
    assert dropped.any() and not dropped.all()
    eps = torch.tensor(eps).permute(0, 3, 1, 2)
    away = prompts.encode_user(NEGATIVE, role="generate")
    pooled = torch.tensor(np.asarray(run.parts.frozen["pooled"]))[None]
    losses = []
    for i, caption in enumerate(CAPTIONS):
        own = prompts.encode_user(caption[:24], role="generate")  # every byte is a token
        length = max(len(own), len(away))
        context = originals.projector(hidden_of(run, originals, away if dropped[i] else own, length))
        level = float(sigma[i])
        noisy = (1 - level) * x0[i : i + 1] + level * eps[i : i + 1]
        velocity = originals.decoder(noisy, context, pooled, torch.tensor([1000 * level]), return_dict=False)[0]
        error = (velocity - (eps[i : i + 1] - x0[i : i + 1])).square().mean().item()
        losses.append(error * 2 / (np.pi * (1 - 2 * level + 2 * level**2)))
    return np.asarray(losses)


def test_loss_is_that_of_pytorch(run, uae_checkpoint):
    loss, aux, _ = run(samples(), KEY)
    wanted = torch_losses(run, uae_checkpoint[1])
    # Five networks in float32 behind each other. One place of padding too many moves it by 1e-3.
    assert relative_error(aux.per_example, wanted) < 2e-5
    assert loss == pytest.approx(wanted.mean(), rel=2e-5)
    dropped = draws(len(CAPTIONS), (1, 1, 1))[2]
    assert float(aux.metrics["dropped"]) == pytest.approx(dropped.mean())


def test_the_decoder_is_told_what_inference_tells_it(run, small_uae):
    batch = run.place(samples())
    tell = running.jit(run.stage.conditions)
    with jax.set_mesh(run.mesh):
        kept = tell(run.parts.params, run.parts.frozen, batch)
        dropped = tell(run.parts.params, run.parts.frozen, batch, np.ones(len(CAPTIONS), bool))
    captions = [caption[:24] for caption in CAPTIONS]
    wanted = small_uae.engine.read(captions, PaintSettings(size=64, negative_prompt=NEGATIVE, guidance=2.0))
    for got, told in zip((kept, dropped), wanted, strict=True):
        np.testing.assert_array_equal(got.lengths, told.lengths)
        for row, length in enumerate(np.asarray(told.lengths)):
            assert relative_error(got.context[row, :length], told.context[row, :length]) < 1e-5


def test_a_dropped_caption_does_not_matter(run):
    _, aux, _ = run(samples(), KEY)
    others = [dataclasses.replace(sample, caption=sample.caption[::-1]) for sample in samples()]
    others[7] = dataclasses.replace(others[7], caption="y" * 30)
    _, other, _ = run(others, KEY)
    same = np.isclose(np.asarray(aux.per_example), np.asarray(other.per_example), rtol=1e-6)
    np.testing.assert_array_equal(same, draws(len(CAPTIONS), (1, 1, 1))[2])


def test_so_many_captions_are_dropped(run):
    batch = run.place(samples())
    shares = [float(run.on(batch, key)[1].metrics["dropped"]) for key in range(40)]
    # 320 draws at 0.4 scatter by sqrt(0.4 x 0.6 / 320) = 0.027; four times that.
    assert np.mean(shares) == pytest.approx(DROP, abs=0.11)


def test_padding_changes_nothing(run):
    batch = run.stage.collate(samples())
    loss, _, gradient = run.on(batch, KEY)
    seen = np.arange(batch["tokens"].shape[1]) < batch["lengths"][:, None]
    assert (seen & ~batch["valid"]).any()  # padding that counts stays as it is
    assert not seen.all()
    noise = np.random.default_rng(0).integers(0, 200, seen.shape).astype(np.int32)
    again, _, same = run.on({**batch, "tokens": np.where(seen, batch["tokens"], noise)}, KEY)
    assert again == pytest.approx(loss, rel=1e-6)
    assert running.difference(same, gradient) < 1e-6


def test_only_what_is_trained_gets_a_gradient(run):
    _, _, gradient = run(samples(), KEY)
    assert set(gradient) == {"projector", "decoder"}
    flat = running.flat(gradient)
    assert all(path.startswith(("projector/params/", "decoder/lora/")) for path in flat)
    # The last layer does not update the text stream, so nobody reads what its text tokens ask for.
    unread = {path for path, leaf in flat.items() if not leaf.any()}
    assert unread == {f"decoder/lora/last/attn/add_q/{part}" for part in "ab"}


@pytest.fixture(scope="module")
def whole(settings):
    """All of the decoder is trained."""
    return running.start(Pretrain(dataclasses.replace(settings, decoder=TowerConfig())))


def test_full_training_leaves_the_position_table_alone(whole):
    parts = whole.parts
    assert "pos_embed/table" in running.flat(parts.frozen["decoder"]["params"])
    assert "pos_embed/table" not in running.flat(parts.params["decoder"]["params"])
    assert jax.tree.structure(parts.params) == jax.tree.structure(
        parts.params_axes, is_leaf=lambda x: isinstance(x, tuple)
    )


@pytest.mark.parametrize("axes", meshes.MESHES, ids=str)
def test_meshes_agree(run, settings, axes):
    loss, _, gradient = run(samples(), KEY)
    other, _, same = running.start(Pretrain(settings), make_mesh(**axes))(samples(), KEY)
    assert other == pytest.approx(loss, rel=1e-6)
    assert running.difference(same, gradient) < 1e-6


def test_micro_batches_draw_what_the_whole_draws(run, settings):
    """Noise, noise level and what is dropped are a sample's own, however the batch is split."""
    loss, _, gradient = run(samples(), KEY)
    other, _, same = running.start(Pretrain(settings), accumulate=2)(samples(), KEY)
    assert other == pytest.approx(loss, rel=1e-6)
    assert running.difference(same, gradient) < 1e-6


def test_steps_fit_a_batch(whole):
    optimiser = optax.adam(0.01)
    params = whole.parts.params
    moments = optimiser.init(params)
    batch = whole.place(samples())
    first, _, _ = whole.on(batch, KEY)
    for _ in range(60):
        _, _, gradient = whole.on(batch, KEY, params)  # always the same noise
        updates, moments = optimiser.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
    last, _, _ = whole.on(batch, KEY, params)
    assert last < first / 3


def test_evaluation_looks_at_fixed_levels(run):
    batch = run.place(samples())
    with jax.set_mesh(run.mesh):
        values = running.jit(run.stage.evaluate)(run.parts.params, {}, run.parts.frozen, batch, jax.random.key(KEY))
    loss, _, _ = run.on(batch, KEY)
    assert float(values["loss"]) == pytest.approx(loss, rel=1e-5)
    levels = [float(values[f"mse_at_{level}"]) for level in ("0.25", "0.75")]
    assert float(values["mse"]) == pytest.approx(np.mean(levels), rel=1e-6)
    assert levels[0] != levels[1]


def test_pictures_stand_beside_their_originals(run):
    picture = run.stage.pictures(run.parts.params, {}, run.parts.frozen, None, samples())[0]
    assert picture.texts == list(CAPTIONS[:2])
    assert [[cell.shape for cell in row] for row in picture.rows] == [[(64, 64, 3)] * 2] * 2
    np.testing.assert_array_equal(picture.rows[0][0], samples()[0].image)


def test_the_result_is_the_checkpoint_with_what_was_trained(run, uae_checkpoint, tmp_path):
    trained = jax.tree.map(lambda leaf: leaf + 1, run.parts.params)
    run.stage.save(trained, {}, run.parts.frozen, tmp_path / "model")
    before, after = uae.load(uae_checkpoint[0]), uae.load(tmp_path / "model")
    assert running.difference(after.projector.params, trained["projector"]["params"]) == 0
    assert running.difference(after.decoder_lora.params, trained["decoder"]["lora"]) == 0
    assert running.difference(after.encoder_lora.params, before.encoder_lora.params) == 0
    for part in ("encoder", "decoder", "vae"):
        assert running.difference(getattr(after, part).params, getattr(before, part).params) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projector": TowerConfig(mode="lora")}, "no place for"),
        ({"decoder": TowerConfig(mode="frozen"), "projector": TowerConfig(mode="frozen")}, "nothing to train"),
        ({"precomputed": True, "encoder": TowerConfig()}, "are a frozen encoder's"),
        ({"drop": 1.0}, "drop is 1.0"),
        ({"shift": -1.0}, "shift is -1.0"),
        ({"weighting": "sqrt"}, "weighting is 'sqrt'"),
        ({"evaluation_sigmas": ()}, "evaluation_sigmas are"),
        ({"paint_steps": 0}, "steps is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, change, message):
    with pytest.raises(ValueError, match=message):
        Pretrain(dataclasses.replace(settings, **change))


def test_parts_of_unlike_models_are_refused(settings):
    stage = Pretrain(dataclasses.replace(settings, encoder_from="new:tiny"))
    with pytest.raises(ValueError, match="projector takes hidden states of 32, got 128"):
        stage.load(running.one_device())

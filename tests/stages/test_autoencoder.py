"""The VAE's stage: its loss is diffusers', its folder is diffusers', its latents are normalised."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
import torch

from tests.parity import randomise, relative_error
from tests.stages import meshes
from uae_jax.data.records import Sample
from uae_jax.models.autoencoder_kl import Posterior, normalise_latents
from uae_jax.stages.autoencoder import Autoencoder, AutoencoderSettings, kl_to_standard_normal
from uae_jax.stages.balance import balanced
from uae_jax.weights.pretrained import load_pretrained

pytestmark = pytest.mark.slow


def pixels(count: int = 8, side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def samples(images: np.ndarray) -> list[Sample]:
    return [Sample(id=f"image {i}", image=image) for i, image in enumerate(images)]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small AutoencoderKL of diffusers: (folder, module)."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    folder = tmp_path_factory.mktemp("vae")
    randomise(vae, 1).save_pretrained(folder)
    return folder, vae


def loaded(folder, **settings) -> tuple[Autoencoder, object]:
    stage = Autoencoder(AutoencoderSettings(model=str(folder), **settings))
    return stage, stage.load(meshes.one_device())


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize(("l2", "l1", "kl"), [(1.0, 0.0, 1e-3), (0.3, 0.7, 0.1)])
def test_loss_and_gradients_equal_pytorch(published, l2, l1, kl):
    folder, vae = published
    stage, parts = loaded(folder, l2=l2, l1=l1, kl_weight=kl)
    images = pixels(2)
    key = jax.random.key(3)
    step = jax.jit(jax.value_and_grad(stage.loss, has_aux=True))
    (got, aux), grads = step(parts.params, parts.state, {}, stage.collate(samples(images)), key)

    x = nchw(images.astype(np.float32) / 127.5 - 1)
    noise = np.asarray(jax.random.normal(key, (2, 8, 8, 4)))
    vae.zero_grad()
    posterior = vae.encode(x).latent_dist
    painted = vae.decode(posterior.mean + posterior.std * nchw(noise)).sample
    # diffusers' own KL: nats, summed over an image's latents; 16 * 16 * 3 pixel values.
    value = l2 * ((painted - x) ** 2).mean() + l1 * (painted - x).abs().mean() + kl * posterior.kl().mean() / 768
    value.backward()

    assert relative_error(got, value) < 1e-5
    assert relative_error(aux.metrics["mse"], ((painted - x) ** 2).mean()) < 1e-5
    assert relative_error(aux.metrics["kl"], posterior.kl().mean()) < 1e-5
    assert relative_error(aux.per_example.mean(), value) < 1e-5
    for ours, theirs in (
        (grads["encoder"]["conv_in"]["kernel"], vae.encoder.conv_in.weight),
        (grads["decoder"]["up_0"]["resample"]["kernel"], vae.decoder.up_blocks[0].upsamplers[0].conv.weight),
    ):
        assert relative_error(ours, theirs.grad.permute(2, 3, 1, 0)) < 1e-4


def test_kl_of_known_gaussians():
    # N(0, 1) has none. N(1, 1): 1/2 for each of 6 numbers. Variance e^2 at mean 0: (e^2 - 1 - 2) / 2 for each.
    zero = jnp.zeros((1, 1, 2, 3))
    np.testing.assert_allclose(kl_to_standard_normal(Posterior(zero, zero)), [0.0])
    np.testing.assert_allclose(kl_to_standard_normal(Posterior(zero + 1, zero)), [3.0], rtol=1e-6)
    wanted = 6 * (np.e**2 - 3) / 2
    np.testing.assert_allclose(kl_to_standard_normal(Posterior(zero, zero + 2)), [wanted], rtol=1e-6)


def test_psnr_is_that_of_images_from_0_to_1(published):
    stage, _ = loaded(published[0])
    white = jnp.ones((1, 4, 4, 3))
    posterior = Posterior(jnp.zeros((1, 2, 2, 4)), jnp.zeros((1, 2, 2, 4)))
    # Off by 0.2 on the scale of -1 to 1 is 0.1 on that of 0 to 1: -10 log10(0.01) = 20 dB. (14 dB on the other.)
    _, metrics = stage._errors(white, white - 0.2, posterior)
    np.testing.assert_allclose(metrics["psnr"], 20.0, rtol=1e-5)
    # What is brighter than white is shown as white.
    _, metrics = stage._errors(white, white + 5, posterior)
    assert metrics["psnr"] > 90 and metrics["mse"] > 20


def test_evaluation_has_no_noise_and_training_has(published):
    stage, parts = loaded(published[0])
    batch = stage.collate(samples(pixels(2)))
    evaluate, loss = jax.jit(stage.evaluate), jax.jit(stage.loss)
    first, second = (evaluate(parts.params, parts.state, {}, batch, jax.random.key(i))["loss"] for i in (0, 1))
    assert first == second
    first, second = (loss(parts.params, parts.state, {}, batch, jax.random.key(i))[0] for i in (0, 1))
    assert first != second


def test_saved_latents_have_mean_0_and_deviation_1(published, tmp_path):
    stage, parts = loaded(published[0], statistics_decay=0.5)
    state = parts.state
    step = jax.jit(lambda state, batch, key: stage.loss(parts.params, state, {}, batch, key)[1].state)
    for i in range(3):
        state = step(state, stage.collate(samples(pixels(8, seed=i))), jax.random.key(i))
    stage.save(parts.params, state, {}, tmp_path / "result")

    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "result")
    config = load_pretrained(tmp_path / "result").config
    latents = []
    with torch.no_grad():
        for i in range(3):
            x = nchw(pixels(8, seed=i).astype(np.float32) / 127.5 - 1)
            posterior = vae.encode(x).latent_dist
            noise = np.asarray(jax.random.normal(jax.random.key(i), (8, 8, 8, 4)))
            latents.append((posterior.mean + posterior.std * nchw(noise)).numpy())
    # Decay 0.5: weights 1/8, 1/4, 1/2 of the three steps, brought to a sum of 1.
    weights = np.array([1, 2, 4]) / 7
    mean = sum(w * z.mean() for w, z in zip(weights, latents, strict=True))
    std = np.sqrt(sum(w * (z**2).mean() for w, z in zip(weights, latents, strict=True)) - mean**2)
    np.testing.assert_allclose([config.shift_factor, 1 / config.scaling_factor], [mean, std], rtol=1e-4)
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (config.scaling_factor, config.shift_factor)
    normal = normalise_latents(latents[2], config)
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05


def test_balanced_latents_are_of_one_weight_and_paint_the_same(published, tmp_path):
    stage, parts = loaded(published[0], statistics_decay=0.0, balance=True)
    images = pixels(16, seed=4)
    _, aux = stage.loss(parts.params, parts.state, {}, stage.collate(samples(images)), jax.random.key(0))
    stage.save(parts.params, aux.state, {}, tmp_path / "result")

    before, after = published[1], diffusers.AutoencoderKL.from_pretrained(tmp_path / "result")
    assert (after.config.scaling_factor, after.config.shift_factor) == (1.0, 0.0)
    with torch.no_grad():
        x = nchw(images.astype(np.float32) / 127.5 - 1)
        old, new = before.encode(x).latent_dist, after.encode(x).latent_dist
        assert relative_error(after.decode(new.mean).sample.numpy(), before.decode(old.mean).sample) < 1e-4
    # Measured on samples, as the statistics were: the same noise, turned along. C^(-1/2) by scipy's road, not ours.
    noise = np.asarray(jax.random.normal(jax.random.key(0), (16, 8, 8, 4)))
    drawn = (old.mean + old.std * nchw(noise)).numpy().transpose(1, 0, 2, 3).reshape(4, -1)
    turn = np.linalg.inv(scipy.linalg.sqrtm(np.cov(drawn, bias=True)))
    np.testing.assert_allclose(np.cov(turn @ drawn, bias=True), np.eye(4), atol=1e-4)
    wanted = np.einsum("iz,bzhw->bihw", turn, old.mean.numpy())
    assert relative_error(new.mean.numpy(), wanted) < 1e-4
    # A spread that is the same in all channels turns into the diagonal of turn turn^T.
    raised = (new.logvar - old.logvar).numpy()
    np.testing.assert_allclose(raised, np.log(np.diag(turn @ turn.T))[:, None, None] + 0 * raised, atol=1e-3)


def test_a_channel_that_never_varies_stays_finite(published):
    _, parts = loaded(published[0])
    config = load_pretrained(published[0]).config
    turned = balanced(parts.params, config, np.diag([1.0, 0.5, 0.25, 0.0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(turned))
    with pytest.raises(ValueError, match=r"covariance of shape \(3, 3\), finite: True; wanted finite \(4, 4\)"):
        balanced(parts.params, config, np.eye(3))


def test_saved_folder_has_no_key_missing_and_the_published_factors_if_nothing_was_measured(published, tmp_path):
    folder, vae = published
    stage, parts = loaded(folder)
    stage.save(parts.params, parts.state, {}, tmp_path / "result")
    again, info = diffusers.AutoencoderKL.from_pretrained(tmp_path / "result", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.scaling_factor == vae.config.scaling_factor
    for key, value in vae.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)


def test_pictures_stand_beside_their_originals(published):
    stage, parts = loaded(published[0], pictures=3)
    images = pixels(4)
    (picture,) = stage.pictures(parts.params, parts.state, {}, stage.collate(samples(images)), samples(images))
    assert picture.columns == ("original", "reconstruction") and len(picture.rows) == len(picture.texts) == 3
    for (original, painted), image in zip(picture.rows, images, strict=False):
        np.testing.assert_array_equal(original, image)
        assert painted.dtype == np.uint8 and painted.shape == image.shape


def test_a_few_steps_halve_the_error(published):
    stage, parts = loaded(published[0])
    batch = stage.collate(samples(np.repeat(pixels(4, side=4), 4, axis=1).repeat(4, axis=2)))
    optimiser = optax.adam(3e-3)

    @jax.jit
    def step(params, moments, state, key):
        (_, aux), grads = jax.value_and_grad(stage.loss, has_aux=True)(params, state, {}, batch, key)
        changes, moments = optimiser.update(grads, moments)
        return optax.apply_updates(params, changes), moments, aux.state, aux.metrics["mse"]

    params, moments, state, errors = parts.params, optimiser.init(parts.params), parts.state, []
    for i in range(60):
        params, moments, state, error = step(params, moments, state, jax.random.key(i))
        errors.append(float(error))
    assert np.mean(errors[-5:]) < 0.5 * np.mean(errors[:5])


@pytest.mark.parametrize("axes", meshes.MESHES, ids=str)
def test_the_mesh_does_not_matter(published, axes):
    batch = {"images": pixels(8)}
    stage = Autoencoder(AutoencoderSettings(model=str(published[0]), kl_weight=1e-2))
    loss, aux, grads = meshes.gradients(stage, meshes.one_device(), batch)
    got_loss, got_aux, got = meshes.gradients(stage, meshes.make_mesh(**axes), batch)
    assert meshes.relative(got_loss, loss) < 1e-6
    assert meshes.relative(got_aux.state, aux.state) < 1e-6
    assert meshes.relative(got, grads) < 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"l2": 0.0}, "wanted none below 0, and l2 or l1 above it"),
        ({"kl_weight": -1.0}, "wanted none below 0"),
        ({"statistics_decay": 1.0}, "statistics_decay is 1.0, wanted from 0 to below 1"),
        ({"model": "new:tyni"}, "the nearest there is 'new:tiny'"),
        ({"dtype": "float16"}, "dtype is 'float16', wanted 'float32' or 'bfloat16'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Autoencoder(AutoencoderSettings(**settings))


def test_images_that_do_not_fit_are_named(published):
    stage, _ = loaded(published[0])
    with pytest.raises(ValueError, match="images are 15x16 pixels, wanted multiples of 2"):
        stage.collate([Sample("a", np.zeros((16, 15, 3), np.uint8))])
    with pytest.raises(ValueError, match=r"b: image of \(8, 8, 3\), wanted \(4, 4, 3\) as a"):
        stage.collate([Sample("a", np.zeros((4, 4, 3), np.uint8)), Sample("b", np.zeros((8, 8, 3), np.uint8))])
    with pytest.raises(ValueError, match="c: no image"):
        stage.collate([Sample("c")])

"""AutoencoderKL against diffusers, block by block, and what the training stages ask of it."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from tests.parity import assert_close, convert, randomise, relative_error
from uae_jax.models import autoencoder_kl
from uae_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, Posterior
from uae_jax.models.runtime import Runtime
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights.autoencoder_kl import ARCHITECTURE
from uae_jax.weights.pretrained import load_pretrained, parameter_count

# (diffusers options, image height and width).
CASES = {
    "quant_convs": (dict(block_out_channels=(16, 32, 32), norm_num_groups=8, layers_per_block=1), (24, 16)),
    "no_attention": (
        dict(
            block_out_channels=(8, 24),
            norm_num_groups=4,
            layers_per_block=2,
            latent_channels=3,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            shift_factor=0.3,
        ),
        (9, 13),  # odd: the bottom and right padding of the downsampler shows
    ),
    "one_block": (
        dict(
            block_out_channels=(12,),
            norm_num_groups=3,
            layers_per_block=3,
            latent_channels=5,
            out_channels=2,
            use_post_quant_conv=False,
        ),
        (6, 10),
    ),
}

SMALL = dict(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1)


def reference(seed: int = 0, **options) -> diffusers.AutoencoderKL:
    blocks = len(options["block_out_channels"])
    types = dict(down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks)
    torch.manual_seed(seed)
    return randomise(diffusers.AutoencoderKL(**types, **options), seed + 1)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def record_blocks(vae: diffusers.AutoencoderKL) -> dict[str, np.ndarray]:
    """A dictionary into which each block's output will go, under our names."""
    found = {}
    for half, module, stem in (("encoder", vae.encoder.down_blocks, "down"), ("decoder", vae.decoder.up_blocks, "up")):
        blocks = {f"{half}/{stem}_{i}": block for i, block in enumerate(module)}
        blocks[f"{half}/mid"] = getattr(vae, half).mid_block
        for name, block in blocks.items():
            block.register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, nhwc(out)))
    return found


@pytest.mark.parametrize("case", CASES)
def test_both_halves_equal_diffusers_block_by_block(case, tmp_path):
    options, (height, width) = CASES[case]
    vae = reference(**options)
    ours = convert(vae, tmp_path)
    images = noise(2, height, width, 3)
    latents = noise(1, 3, 4, ours.config.latent_channels, seed=1)
    blocks = record_blocks(vae)
    with torch.no_grad():
        posterior = vae.encode(nchw(images)).latent_dist
        decoded = vae.decode(nchw(latents)).sample

    @jax.jit
    def run(params, images, latents):
        def halves(module):
            return module.encode(images), module.decode(latents)

        return ours.module.apply({"params": params}, method=halves, mutable=["intermediates"])

    (got, images_got), state = run(ours.params, images, latents)
    assert len(blocks) == 2 * (len(options["block_out_channels"]) + 1)
    for name, wanted in blocks.items():
        half, block = name.split("/")
        assert_close(state["intermediates"][half][block]["hidden"][0], wanted, name)
    assert_close(got.mean, nhwc(posterior.mean), "mean")
    assert_close(got.logvar, nhwc(posterior.logvar), "logvar")
    assert_close(images_got, nhwc(decoded), "images")


def test_a_call_reconstructs_through_the_mode(tmp_path):
    vae = reference(**SMALL)
    images = noise(1, 6, 8, 3)
    with torch.no_grad():
        wanted = vae(nchw(images)).sample
    assert_close(convert(vae, tmp_path)(images), nhwc(wanted))


def test_log_variance_is_clipped_as_in_diffusers(tmp_path):
    vae = reference(**CASES["no_attention"][0])
    with torch.no_grad():  # channels 3, 4, 5 of the moments are the log-variances
        vae.encoder.conv_out.bias[3:] = torch.tensor([-100.0, 0.0, 100.0])
        posterior = vae.encode(nchw(noise(1, 8, 8, 3))).latent_dist
    got = convert(vae, tmp_path)(noise(1, 8, 8, 3), method="encode")
    assert_close(got.logvar, nhwc(posterior.logvar), "logvar")
    assert np.all(got.logvar[..., 0] == -30.0) and np.all(got.logvar[..., 2] == 20.0)
    assert np.all(np.abs(got.logvar[..., 1]) < 20.0)


def test_sample_is_mean_plus_deviation_times_noise_as_in_diffusers():
    moments = nchw(noise(2, 3, 5, 8))
    theirs = DiagonalGaussianDistribution(moments)
    wanted = theirs.sample(torch.Generator().manual_seed(3))
    same_noise = nhwc(torch.randn(theirs.mean.shape, generator=torch.Generator().manual_seed(3)))

    ours = Posterior(jnp.asarray(nhwc(theirs.mean)), jnp.asarray(nhwc(theirs.logvar)))
    assert_close(ours.shifted_by(same_noise), nhwc(wanted))
    np.testing.assert_array_equal(ours.mode(), ours.mean)
    key = jax.random.key(5)
    np.testing.assert_array_equal(ours.sample(key), ours.shifted_by(jax.random.normal(key, ours.mean.shape)))


def test_latents_are_normalised_by_shift_then_scale():
    # (1.0609 - 0.0609) * 1.5305 = 1.5305; scaling before shifting would give 1.5628.
    config = AutoencoderKLConfig.sd3()
    z = jnp.array([0.0609, 1.0609])
    got = autoencoder_kl.normalise_latents(z, config)
    np.testing.assert_allclose(got, [0.0, 1.5305], atol=1e-6)
    np.testing.assert_allclose(autoencoder_kl.denormalise_latents(got, config), z, atol=1e-6)


@pytest.mark.slow
def test_decoder_gradient_equals_diffusers_and_does_not_depend_on_remat(tmp_path):
    # The cold start differentiates the reward through the decoder.
    vae = reference(**SMALL)
    latents, weight = noise(1, 2, 3, 4), noise(1, 4, 6, 3, seed=1)
    z = nchw(latents).requires_grad_()
    (vae.decode(z).sample * nchw(weight)).sum().backward()

    for remat in ("none", "full"):
        ours = convert(vae, tmp_path, Runtime(remat=remat))

        def loss(z, ours=ours):
            return jnp.sum(ours.module.apply({"params": ours.params}, z, method="decode") * weight)

        assert_close(jax.jit(jax.grad(loss))(latents), nhwc(z.grad), f"gradient with remat {remat}")


def test_full_size():
    config = AutoencoderKLConfig.sd3()
    params = ARCHITECTURE.abstract(config)
    assert parameter_count(params) == 83_819_683  # of stabilityai/stable-diffusion-3.5-large, folder vae
    model = AutoencoderKL(config)
    images = jax.ShapeDtypeStruct((1, 512, 768, 3), "bfloat16")
    posterior = jax.eval_shape(lambda p, x: model.apply({"params": p}, x, method="encode"), params, images)
    assert (posterior.mean.shape, posterior.mean.dtype) == ((1, 64, 96, 16), jnp.float32)
    decoded = jax.eval_shape(lambda p, z: model.apply({"params": p}, z, method="decode"), params, posterior.mean)
    assert (decoded.shape, decoded.dtype) == ((1, 512, 768, 3), jnp.float32)


def test_computes_in_bfloat16_and_returns_float32(tmp_path):
    vae = reference(**SMALL)
    images = noise(1, 8, 8, 3)
    exact = convert(vae, tmp_path)(images)
    got = convert(vae, tmp_path, Runtime(dtype=jnp.bfloat16))(images)
    assert got.dtype == jnp.float32
    # bfloat16 keeps 8 bits (4e-3 a step); equal results would mean that the option is ignored.
    assert 1e-4 < relative_error(got, exact) < 5e-2


@pytest.mark.parametrize("config", [AutoencoderKLConfig.sd3(), AutoencoderKLConfig.tiny()])
def test_every_parameter_has_logical_axes_of_its_rank(config):
    params = ARCHITECTURE.abstract(config)
    axes = autoencoder_kl.LOGICAL_AXES.tree(params)
    jax.tree.map(lambda leaf, names: pytest.fail(f"{leaf}: {names}") if leaf.ndim != len(names) else None, params, axes)


@pytest.mark.slow
def test_sharded_equals_single_device(tmp_path):
    vae = reference(**SMALL)
    ours = convert(vae, tmp_path)
    images = noise(4, 8, 8, 3)
    wanted = ours(images)
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        sharded = load_pretrained(tmp_path, mesh=mesh).params
        got = jax.jit(lambda p, x: ours.module.apply({"params": p}, x))(sharded, images)
    kernel = sharded["encoder"]["conv_in"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 3, 3, 4)  # 8 channels over fsdp = 2
    assert relative_error(got, wanted) <= 1e-5


def test_widths_must_be_multiples_of_the_norm_groups():
    with pytest.raises(ValueError, match=r"block_out_channels is \(20,\), wanted multiples of norm_num_groups 8"):
        AutoencoderKLConfig(block_out_channels=(20,), norm_num_groups=8)

"""The table of where a step's time goes."""

import json

import jax
import jax.numpy as jnp
import pytest

from uae_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from uae_jax.training import profiling
from uae_jax.training.profiling import Part


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("jit(step)/prepare/while/body/SD3Transformer.denoise/layers/mul", Part("rollout", "SD3Transformer", False)),
        ("jit(step)/loss/jvp(AutoencoderKL.decode)/decoder/conv", Part("loss", "AutoencoderKL", False)),
        ("jit(step)/loss/transpose(jvp(CLIP))/vision/dot_general", Part("loss", "CLIP", True)),
        ("jit(step)/while/body/optimiser/mul", Part("optimiser", "other", False)),
        ("jit(step)/add", Part("other", "other", False)),
        ("", Part("other", "other", False)),
    ],
)
def test_part_of_an_operation(path, part):
    assert Part.of(path) == part


@pytest.mark.parametrize(
    ("line", "known"),
    [
        (
            '  ROOT %mul.1 = f32[2]{0} fusion(%a, /*index=5*/%b), kind=kLoop, metadata={op_name="jit(step)/loss/mul" '
            'stack_frame_id=7}, backend_config={"outer_dimension_partitions":["2"]}',
            ("mul.1", "fusion", "jit(step)/loss/mul"),
        ),
        ("  %while.3 = (s32[], f32[4]{0}) while(%tuple.1), condition=%c, body=%b", ("while.3", "while", "")),
        ('  %p = f32[] parameter(0), sharding={replicated}, metadata={op_name="x"}', ("p", "parameter", "x")),
    ],
)
def test_instruction_of_a_program(line, known):
    """As XLA writes them on CPU: what a backend adds behind the path is not to hide it."""
    assert list(profiling._instructions(f"HloModule jit_step, is_scheduled=true\n{line}\n")) == [("jit_step", *known)]


@pytest.mark.slow
def test_steps_are_traced_and_told_apart(tmp_path):
    """A decoder in the rollout, an encoder forward and backward in the loss: what was not there takes no time."""
    vae = AutoencoderKL(AutoencoderKLConfig.tiny())
    images = jnp.zeros((2, 32, 32, 3))
    params = jax.jit(vae.init)(jax.random.key(0), images)

    @jax.jit
    def step(params):
        with jax.named_scope(profiling.PREPARE):
            target = vae.apply(params, jnp.ones((2, 8, 8, 4)), method="decode").mean()
        with jax.named_scope(profiling.LOSS):
            gradient = jax.grad(lambda p: (vae.apply(p, images, method="encode").mean.mean() - target) ** 2)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)

    profiler = profiling.Profiler(tmp_path, start=10, steps=2)
    for number in range(11, 17):
        profiler.before(number, params)
        params = step(params)
        said = profiler.after(number, params)
        assert (said is not None) == (number == 15)  # three steps go before, two are traced
        if said is not None:
            table = said.splitlines()
    assert table[0] == f"profile of steps 14 to 15, {tmp_path / 'profile'}"
    rows = json.loads((tmp_path / "profile/parts.json").read_text())
    assert len(table) == 2 + len(rows)
    taken = {(row["phase"], row["model"], row["backward"]): row["seconds_per_step"] for row in rows}
    assert taken.keys() >= {
        ("rollout", "AutoencoderKL", False),
        ("loss", "AutoencoderKL", False),
        ("loss", "AutoencoderKL", True),
    }
    assert min(taken.values()) > 0 and ("rollout", "AutoencoderKL", True) not in taken
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))


def test_without_steps_nothing_is_written(tmp_path):
    profiler = profiling.Profiler(tmp_path, start=0, steps=0)
    for number in range(1, 9):
        profiler.before(number, 0)
        assert profiler.after(number, 0) is None
    assert not list(tmp_path.iterdir())

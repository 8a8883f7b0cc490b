"""The flow sampler against closed forms, published tables and diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.sampling import flow

# Ten steps, shift 3, a = 0.7: sigma, std, |c_v| and K = c_v^2 / (2 std^2), from Flow-GRPO's formulas.
GOLDEN = np.array(
    [
        [1.0, 0.70000, 0.0399, 0.0016],
        [0.960129, 0.74296, 0.0582, 0.0031],
        [0.913349, 0.53615, 0.0693, 0.0084],
        [0.857692, 0.44590, 0.0838, 0.0177],
        [0.790368, 0.39179, 0.1034, 0.0349],
        [0.707278, 0.35280, 0.1309, 0.0688],
        [0.602151, 0.31907, 0.1709, 0.1435],
        [0.464876, 0.28201, 0.2326, 0.3401],
        [0.278049, 0.22536, 0.3351, 1.105],
        [0.008929, 0.00628, 0.0111, 1.568],
    ]
)


def test_sde_coefficients_match_the_golden_table():
    schedule = flow.make_schedule(10, form="sde", noise_level=0.7)
    np.testing.assert_allclose(schedule.sigma[:-1], GOLDEN[:, 0], atol=6e-7)  # half a unit of the sixth digit
    np.testing.assert_allclose(schedule.std, GOLDEN[:, 1], atol=6e-6)
    np.testing.assert_allclose(-schedule.c_v, GOLDEN[:, 2], atol=6e-5)
    k = schedule.c_v**2 / (2 * schedule.std**2)
    np.testing.assert_allclose(k[:8], GOLDEN[:8, 3], atol=6e-5)
    np.testing.assert_allclose(k[8:], GOLDEN[8:, 3], atol=6e-4)


def test_the_first_step_adds_exactly_a():
    # std^2 = a^2 / (1 - s1) (1 - s1). Clamping t itself to 0.99 instead of its denominator would give 1.40.
    np.testing.assert_allclose(flow.make_schedule(10, form="sde", noise_level=0.7).std[0], 0.7, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 28, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sigmas_are_those_of_diffusers(steps, shift):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(flow.sigmas(steps, shift), scheduler.sigmas.numpy(), rtol=2e-6)
    np.testing.assert_allclose(flow.make_schedule(steps, shift=shift).timestep, scheduler.timesteps.numpy(), rtol=2e-6)


def test_exact_sigmas_shift_the_last_level_once():
    # 3 * 0.001 / 1.002 = 0.002994; diffusers shifts it again: 0.008929.
    np.testing.assert_allclose(flow.sigmas(10, sigma_compat="exact")[-2], 0.002994, atol=5e-7)
    np.testing.assert_allclose(flow.sigmas(10)[-2], 0.008929, atol=5e-7)


def test_ode_steps_are_diffusers_euler_steps():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
    velocities = rng.normal(size=(5, 2, 4, 4, 3)).astype(np.float32)
    theirs = torch.tensor(x)
    for t, v in zip(scheduler.timesteps, velocities, strict=True):
        theirs = scheduler.step(torch.tensor(v), t, theirs).prev_sample
    ours, _ = flow.sample(lambda _, i: jnp.asarray(velocities)[i], jnp.asarray(x), flow.make_schedule(5))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-6)  # float32 rounding of sums of size 1


@pytest.mark.parametrize("form", ["sde", "cps"])
def test_noise_level_zero_is_the_ode(form):
    ode = flow.make_schedule(8)
    other = flow.make_schedule(8, form=form, noise_level=0.0)
    for name in ("sigma", "c_x", "c_v", "std"):
        np.testing.assert_array_equal(getattr(ode, name), getattr(other, name))
    density = flow.logprob(jnp.ones((2, 1, 1, 1)), jnp.zeros((2, 1, 1, 1)), ode.std[0])
    np.testing.assert_array_equal(density, [0.0, 0.0])  # not NaN


def gaussian_moments(schedule, mean, spread, start):
    """Exact mean and variance of the rollout when x0 ~ Normal(mean, spread^2): the velocity is then linear in x."""
    m, v = start
    t = np.asarray(schedule.sigma, np.float64)[:-1]
    c_x, c_v, std = (np.asarray(a, np.float64) for a in (schedule.c_x, schedule.c_v, schedule.std))
    k = (t - (1 - t) * spread**2) / ((1 - t) ** 2 * spread**2 + t**2)
    for i in range(len(t)):
        # v = -mean + k (x - (1 - t) mean)
        m = (c_x[i] + c_v[i] * k[i]) * m + c_v[i] * (-mean - k[i] * (1 - t[i]) * mean)
        v = (c_x[i] + c_v[i] * k[i]) ** 2 * v + std[i] ** 2
    return m, v


@pytest.mark.parametrize(
    ("form", "variance"), [("ode", 0.128996), ("sde", 0.177256), ("cps", 0.102266)], ids=["ode", "sde", "cps"]
)
def test_gaussian_data_gives_the_exact_variance(form, variance):
    # Exact recursion in float64 for mean 1, spread 0.5, ten steps; a mistake in any coefficient moves the variance.
    schedule = flow.make_schedule(10, form=form, noise_level=0.7)
    m, v = gaussian_moments(schedule, mean=1.0, spread=0.5, start=(0.0, 1.0))
    np.testing.assert_allclose([m, v], [1.0, variance], atol=1.5e-6)


@pytest.mark.parametrize(("steps", "error"), [(20, -6.34e-3), (80, -1.87e-3), (320, -4.86e-4)])
def test_the_sde_keeps_the_marginals_to_first_order(steps, error):
    # Uniform levels 0.9 to 0.1: Var = (1 - t)^2 s^2 + t^2; the discretisation error falls as 1 / N.
    t = np.linspace(0.9, 0.1, steps + 1)
    schedule = flow.schedule_from_sigmas(t, "sde", np.full(steps, 0.7))
    start, wanted = ((1 - level) ** 2 * 0.25 + level**2 for level in (0.9, 0.1))
    _, v = gaussian_moments(schedule, mean=0.0, spread=0.5, start=(0.0, start))
    np.testing.assert_allclose(v - wanted, error, rtol=5e-3)


def test_cps_keeps_the_noise_level_of_a_point_exactly_and_the_sde_does_not():
    # x0 fixed: the variance must be sigma^2 after each step. The SDE's first step gives 1.0014 instead of 0.9218.
    cps, sde = (flow.make_schedule(10, form=form, noise_level=0.7) for form in ("cps", "sde"))
    v = 1.0
    for i in range(10):
        k = 1 / float(cps.sigma[i])
        v = (float(cps.c_x[i]) + float(cps.c_v[i]) * k) ** 2 * v + float(cps.std[i]) ** 2
        np.testing.assert_allclose(v, float(cps.sigma[i + 1]) ** 2, atol=1e-6)
    first = float(sde.c_x[0] + sde.c_v[0]) ** 2 + float(sde.std[0]) ** 2
    np.testing.assert_allclose(first, 1.0014, atol=1e-4)


def test_sampled_moments_follow_the_recursion():
    # 40000 one-pixel images: the standard error of the variance 0.177 is 0.177 sqrt(2 / 40000) = 0.00125.
    schedule = flow.make_schedule(10, form="sde", noise_level=0.7)

    def velocity(x, i):
        t = schedule.sigma[i]
        k = (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2)
        return -1.0 + k * (x - (1 - t))

    keys = jax.random.split(jax.random.key(0), 40_000)
    x = flow.initial_noise(jax.vmap(lambda k: jax.random.fold_in(k, 10_000))(keys), (1, 1, 1))
    final, _ = jax.jit(lambda x, keys: flow.sample(velocity, x, schedule, keys))(x, keys)
    assert abs(float(final.mean()) - 1.0) < 0.01
    assert abs(float(final.var()) - 0.177256) < 0.004


def test_rollout_and_scoring_share_one_density():
    schedule = flow.make_schedule(6, form="sde")
    keys = jax.random.split(jax.random.key(1), 3)
    x = flow.initial_noise(keys, (2, 2, 4))
    _, path = flow.sample(lambda x, i: 0.3 * x, x, schedule, keys, trajectory=True)
    for i in range(6):
        mean, std = flow.transition(schedule, i, path["latents"][i], 0.3 * path["latents"][i])
        again = flow.logprob(path["latents"][i + 1], mean, std)
        np.testing.assert_allclose(again, path["logprob"][i], rtol=1e-5, atol=1e-5)
    # Negative control: another velocity is another density.
    mean, std = flow.transition(schedule, 4, path["latents"][4], 0.5 * path["latents"][4])
    assert np.abs(flow.logprob(path["latents"][5], mean, std) - path["logprob"][4]).max() > 1e-4


def test_logprob_is_the_mean_of_the_gaussian_log_density():
    # One unit off with std 2: -1/8 - ln 2 - ln sqrt(2 pi). Twice over, the sum would be twice that.
    wanted = -0.125 - np.log(2.0) - 0.5 * np.log(2 * np.pi)
    got = flow.logprob(jnp.ones((1, 1, 1, 2)), jnp.zeros((1, 1, 1, 2)), jnp.float32(2.0))
    np.testing.assert_allclose(got, [wanted], rtol=1e-6)


def test_an_image_does_not_depend_on_its_batch():
    schedule = flow.make_schedule(4, form="sde")
    keys = jax.random.split(jax.random.key(5), 4)
    x = flow.initial_noise(keys, (2, 2, 1))
    whole, _ = flow.sample(lambda x, i: 0.1 * x, x, schedule, keys)
    part, _ = flow.sample(lambda x, i: 0.1 * x, x[2:3], schedule, keys[2:3])
    np.testing.assert_array_equal(whole[2:3], part)


def test_a_window_confines_the_noise():
    schedule = flow.make_schedule(10, form="cps", noise_level=0.8, window=(1, 4))
    np.testing.assert_array_equal(np.asarray(schedule.std) > 0, [i in (1, 2, 3) for i in range(10)])
    np.testing.assert_array_equal(schedule.c_v[5:], flow.make_schedule(10).c_v[5:])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 4, "form": "dpm"}, "form is 'dpm', wanted one of ode, sde, cps"),
        ({"steps": 4, "window": (2, 9)}, "window is"),
        ({"steps": 4, "form": "cps", "noise_level": 1.5}, "noise_level is 1.5, wanted 0 to 1"),
        ({"steps": 4, "sigma_compat": "x"}, "sigma_compat is 'x'"),
        ({"steps": 4, "shift": 0.0}, "shift is 0.0"),
    ],
)
def test_bad_schedules_are_refused(kwargs, message):
    steps = kwargs.pop("steps")
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        flow.make_schedule(steps, **kwargs)


def test_noise_without_keys_is_refused():
    with pytest.raises(ValueError, match="no keys"):
        flow.sample(lambda x, i: x, jnp.zeros((1, 1, 1, 1)), flow.make_schedule(4, form="sde"))

"""The stages of the loop give the same on one device and on eight, given one and the same rollout.

Rollouts themselves are draws: a last bit that differs becomes another token sooner or later, so they are recorded.
What is to agree is small beside what it is made of: losses of a policy that has not moved, of samples too, are means
of advantages times ratios that nearly cancel, so they are compared in units of the advantages. Gradients cross a
sampler, so they have fewer digits than float32 stores. How many is measured, by moving every weight by one unit in its
last place; and splitting, which orders sums anew in every layer, may change no more than a few times that.
"""

import jax
import numpy as np
import pytest

from tests.stages import meshes, running
from uae_jax import plain
from uae_jax.data.records import Sample
from uae_jax.data.scenes import render, sample_scene
from uae_jax.sampling import widths
from uae_jax.stages import registry
from uae_jax.stages.flow_grpo_settings import preset

pytestmark = pytest.mark.slow

IMAGES = 8
PAINT = {"steps": 3, "guidance": 2.0}
LORA = {"mode": "lora", "rank": 2, "alpha": 4.0}
SETTINGS = {
    "cold_start": {"encoder": LORA, "decoder": LORA, "paint": PAINT},
    "gen_for_understanding": {"encoder": LORA, "paint": PAINT, "group": 2, "learn_truncated": True},
    "understanding_for_gen": {"decoder": LORA, **preset("flow_grpo", group=2, updates=1, paint=PAINT)},
}


def marked(name):
    """A stage as a parameter; each takes four minutes, so one runs when nothing is asked for."""
    return pytest.param(name, marks=() if name == "gen_for_understanding" else pytest.mark.exhaustive)


def make(name):
    """A stage, on the embedded model: of a new one, gradients are little more than rounding."""
    kind = registry.find(name)
    return kind(plain.from_plain(kind.Settings, {"text": {"max_tokens": 12}, **SETTINGS[name]}, name), seed=1)


def samples():
    return [Sample(str(i), render(sample_scene((9, i))), "a red circle", "text") for i in range(IMAGES)]


def moved(tree):
    """Adapters that do something: new ones begin at zero."""
    leaves, kind = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return kind.unflatten([x + 0.02 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module", autouse=True)
def two_widths():
    """Texts of these tests are short; they are to be cut as long ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widths, "LEAST", 16)
        yield


@pytest.fixture(scope="module", params=[marked(name) for name in SETTINGS])
def recorded(request):
    """A stage's name, parameters, a rollout of it, what one device makes of them, and how much of that is rounding."""
    name, mesh = request.param, meshes.one_device()
    stage = make(name)
    with jax.set_mesh(mesh):
        parts = stage.load(mesh)
        params = moved(parts.params)
        prepare = running.jit(stage.prepare)
        batch, _ = prepare(params, parts.state, parts.frozen, stage.collate(samples()), jax.random.key(0))
    params, batch = jax.tree.map(np.asarray, (params, batch))
    alone = meshes.gradients(make(name), mesh, batch, start=(params, {}))
    nudged = meshes.gradients(make(name), mesh, batch, start=(params, {}), nudge=True)
    return name, params, batch, alone, differences(nudged, alone, batch)


def differences(got, wanted, batch):
    """Of the loss and of samples' losses, in units of what they are means of; and of the gradient, of its size."""
    (loss, aux, grads), (other, wanted_aux, wanted_grads) = got, wanted
    terms = rms(batch["advantage"]) if "advantage" in batch else rms(wanted_aux.per_example)
    return {
        "loss": abs(float(loss) - float(other)) / terms,
        "per_example": rms(np.subtract(aux.per_example, wanted_aux.per_example, dtype=np.float64)) / terms,
        "gradient": meshes.relative(grads, wanted_grads),
    }


def rms(values):
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@pytest.mark.parametrize("axes", meshes.MESHES, ids=str)
def test_meshes_agree(recorded, axes):
    name, params, batch, alone, rounding = recorded
    split = meshes.gradients(make(name), meshes.make_mesh(**axes), batch, start=(params, {}))
    found = differences(split, alone, batch)
    assert max(rounding.values()) < 1e-3  # a fault would be seen beside it
    # One number's rounding may be next to nothing by chance; a mean's is no larger than that of what it is a mean of.
    least = rounding | {"loss": rounding["per_example"]}
    for what, difference in found.items():
        assert difference < max(1e-6, 3 * least[what]), what

"""Rollouts with weights gathered once: what they make is the same, and their loops send none of them."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.stages import judges
from uae_jax import plain
from uae_jax.batching import place
from uae_jax.data.records import Sample
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh
from uae_jax.plan.collectives import collectives
from uae_jax.stages import registry

pytestmark = pytest.mark.slow

PAINT = {"steps": 2, "guidance": 1.0}
LORA = {"mode": "lora", "rank": 2}
SETTINGS = {
    "gen_for_understanding": {"encoder": LORA, "group": 2},
    "understanding_for_gen": {"decoder": LORA, "group": 2, "updates": 1, "window": 0},
}


def gathers_in_loops(program):
    """Bytes of the largest result of an all-gather that a loop repeats; 0 where there is none."""
    found = [each for each in collectives(program) if each.kind == "all-gather" and each.in_loops]
    return max((each.largest for each in found), default=0)


@pytest.mark.parametrize(
    "name", [pytest.param("gen_for_understanding", marks=pytest.mark.exhaustive), "understanding_for_gen"]
)
def test_gathered_weights_are_sent_once_and_change_nothing(name, tmp_path):
    kind, mesh, reward = registry.find(name), make_mesh(fsdp=8), judges.write(tmp_path)
    rng = np.random.default_rng(0)
    samples = [Sample(str(i), rng.integers(0, 256, (32, 32, 3), np.uint8), None, None) for i in range(8)]
    made, sent = {}, {}
    for weights in ("sharded", "gathered"):
        told = {"model": "new:tiny", "text": {"max_tokens": 4, "max_pixels": 32 * 32, "negative": ""}, "paint": PAINT}
        settings = plain.from_plain(kind.Settings, {**told, **SETTINGS[name], "rollout_weights": weights}, name)
        stage = kind(dataclasses.replace(settings, reward=reward), seed=1)
        with jax.set_mesh(mesh):
            parts = stage.load(mesh)
            params = jax.device_put(parts.params, sharding.shardings(parts.params, parts.params_axes, mesh))
            batch = jax.tree.map(lambda leaf: place(leaf, mesh), stage.collate(samples))
            compiled = (
                jax.jit(stage.prepare).lower(params, parts.state, parts.frozen, batch, jax.random.key(0)).compile()
            )
            made[weights], _ = compiled(params, parts.state, parts.frozen, batch, jax.random.key(0))
        sent[weights] = gathers_in_loops(compiled.as_text())
    for key in made["sharded"]:
        np.testing.assert_allclose(made["gathered"][key], made["sharded"][key], rtol=1e-4, atol=1e-5)
    assert sent["gathered"] < 1000 < sent["sharded"]

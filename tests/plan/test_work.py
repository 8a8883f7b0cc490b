"""Closed forms of whole stages against their traced steps: rollout, gradients, updates; by tiny models, on one chip."""

import pytest

from tests.plan.counting import products
from uae_jax.parallel.mesh import use_mesh
from uae_jax.plan import staged, work
from uae_jax.plan.stand_ins import StandIns
from uae_jax.training import configure

QUICK = [("configs/tiny/captioner.py", "looking"), ("configs/tiny/autoencoder.py", ""), ("configs/tiny/clip.py", "")]
SLOW = [
    ("configs/pretrain.py", ""),
    ("configs/cold_start.py", ""),
    ("configs/gen_for_understanding.py", ""),
    ("configs/understanding_for_gen.py", ""),
    ("configs/understanding_for_gen.py:preset=fast", ""),
    ("configs/understanding_for_gen.py:preset=flow_grpo", ""),
    ("configs/tiny/captioner.py", "whole"),
    ("configs/tiny/dinov2.py", ""),
]


@pytest.mark.parametrize(("config", "stage"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_stage_computes_what_is_said(config, stage):
    experiments = dict(configure.load_config(config))
    experiment = experiments[stage] if stage else next(iter(experiments.values()))
    loaded = staged.load(experiment, 1, StandIns("tiny"))
    new = getattr(getattr(experiment.settings, "text", None), "max_tokens", 0)  # rounds of the loop that writes
    with use_mesh(loaded.mesh):
        traced = products(loaded.step(), *loaded.placed(loaded.mesh), rounds=new) / experiment.batch_size
    # On a CPU there is no flash kernel. Of models this small, heads, crops and modulation are a few hundredths.
    wanted = work.total(work.phases(loaded, flash=False)).total
    assert traced == pytest.approx(wanted, rel=0.04)

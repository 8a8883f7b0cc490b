"""`uae plan`, without a compiler and with it."""

import importlib.util
import json
import math

import pytest

from uae_jax import cli
from uae_jax.plan import command, compiling, memory, planning, staged, topologies
from uae_jax.plan.compiling import GIB
from uae_jax.plan.stand_ins import StandIns
from uae_jax.training import configure

PRETRAIN = "configs/pretrain.py:size=full"
DECODER = 8_056_627_520  # parameters of SD3.5-Large; its table of positions is none, and is not trained
PROJECTOR = 2048 * 8192 + 8192 + 8192 * 4096 + 4096


def planned(capsys, *arguments):
    """(exit code, what was printed)."""
    code = cli.main(["plan", "--closed-form", *arguments])
    return code, capsys.readouterr().out


def test_figures_of_the_whole_decoder(capsys, tmp_path):
    code, said = planned(capsys, "--config", PRETRAIN, "--topology", "v5p:2x2x2", "--json", str(tmp_path / "plan.json"))
    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    assert code == 0 and "IT FITS" in said and plan["source"] == "closed forms"
    assert plan["parameters"]["trained"] == DECODER + PROJECTOR
    each = plan["bytes_per_chip"]
    share = 4 * plan["parameters"]["trained"] / 8  # fsdp 8, float32; vectors lie on every chip
    assert each["parameters"] == each["ema"] == pytest.approx(share, rel=0.01)
    assert each["optimiser"] == pytest.approx(2 * share, rel=0.01)
    assert each["limit"] == 0.9 * 95e9
    # 768 tokens of a caption that fills its limit: more than the 512 that most figures are of.
    assert plan["flops_per_image"]["decoder trained"] == pytest.approx(44e12, rel=0.02)
    seconds = plan["seconds_per_step"]
    assert seconds["ideal"] == pytest.approx(256 * plan["flops_per_image"]["all"] / (8 * 459e12), rel=1e-3)
    assert seconds["expected"] > 1.9 * seconds["ideal"]  # half of the arithmetic
    assert "models/UAE is not there; taken for a model of size full" in said


def test_what_does_not_fit_says_so(capsys):
    code, said = planned(
        capsys, "--config", PRETRAIN, "--topology", "v5e:2x4", "--config.batch_size=64", "--config.accumulate=1"
    )
    assert code == 1 and "IT DOES NOT FIT" in said


def test_batches_that_do_not_split_are_refused(capsys):
    # 3 micro-batches and 2 updates on 16 chips: 96 images at least.
    assert cli.main(["plan", "--closed-form", "--config", "configs/understanding_for_gen.py:size=full", "--topology",
                     "h100:16"]) == 1  # fmt: skip
    assert "batch_size is 48, wanted a multiple of 96" in capsys.readouterr().err


def test_weights_cut_badly_are_named(capsys):
    everywhere = ("--config.mesh.fsdp=-1", "--config.mesh.data=1")
    _, said = planned(capsys, "--config", PRETRAIN, "--topology", "v5p:4x4x4", *everywhere)
    assert "side 2432 are cut into parts of 38" in said and "into 32 parts by mesh.fsdp" in said
    _, said = planned(capsys, "--config", PRETRAIN, "--topology", "v5p:4x4x4")
    assert "WARNING" not in said


def test_missing_compiler_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name))
    assert "pip install 'libtpu==" in compiling.missing(topologies.parse("v5p:2x2x1"))
    assert "no compiler for h100" in compiling.missing(topologies.parse("h100:8"))


def test_size_of_models_that_are_not_there():
    assert command.size_of("configs/pretrain.py") == "full"
    assert command.size_of("configs/pretrain.py:data=x,size=small") == "small"
    with pytest.raises(ValueError, match="wanted one of full, small, tiny"):
        StandIns("huge")


def test_stages_that_go_on_from_the_last_have_its_size():
    experiments = command.resolved(configure.load_config("configs/alternate.py:size=small"))
    assert {experiment.settings.model for _, experiment in experiments} == {"runs/cold_start/model"}


def test_closed_forms_are_what_the_compiler_said_of_the_first_stage():
    """libtpu 0.0.42.1, `pretrain` on v5p:2x2x1, 4 images a chip at 512 pixels: a peak of 35.77 GiB.

    24.19 GiB of it are arguments, without what the step does not read, which the compiler dropped: the encoder's vision
    tower, 0.67 B parameters in bfloat16 over 4 chips, and the decoding half of the VAE.
    """
    overrides = ("--config.batch_size=16", "--config.accumulate=1", "--config.ema.decay=0.0", "--config.mesh.fsdp=4")
    ((_, experiment),) = configure.load_config(PRETRAIN, overrides)
    loaded = staged.load(experiment, 4, StandIns("full"))
    estimated = memory.estimate(loaded)
    assert estimated.peak / GIB == pytest.approx(35.77, rel=0.1)
    assert estimated.arguments / GIB == pytest.approx(24.19 + (2 * 0.669e9 + 4 * 0.05e9) / 4 / GIB, rel=0.005)


@pytest.mark.parametrize(("overrides", "gib"), [((), 23.25), (("--config.mesh.fsdp=1",), 51.80)])
def test_closed_forms_are_what_the_compiler_said_of_flow_grpo(overrides, gib):
    """libtpu 0.0.42.1, `understanding_for_gen` as it is at full size, on v5p:2x2x2: peaks of 23.25 and 51.80 GiB.

    As read off what lives at these peaks: frozen weights in another layout, 2.3 GiB where they are split, and 6.5, of
    the modulations alone, where they lie whole; and some 2 GiB of the decoder's last layer.
    """
    ((_, experiment),) = configure.load_config("configs/understanding_for_gen.py:size=full,data=x", overrides)
    loaded = staged.load(experiment, 8, StandIns("full"))
    assert memory.estimate(loaded).peak / GIB == pytest.approx(gib, rel=0.1)


# A decoder alone: latents and hidden states come with the samples, so that neither encoder nor VAE is compiled.
ALONE = ("--config.settings.precomputed=true", "--config.data.resolution=512", "--config.ema.decay=0",
         "--config.settings.max_tokens=500", "--config.batch_size=16", "--config.accumulate=1",
         "--config.mesh.fsdp=4")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "overrides", "name"),
    [(PRETRAIN, ALONE, "v5p:2x2x1"), (PRETRAIN, (*ALONE, "--config.settings.decoder.mode=lora"), "v5p:2x2x1")],
)
def test_closed_forms_are_what_the_compiler_says(config, overrides, name):
    topology = topologies.parse(name)
    if why := compiling.missing(topology):
        pytest.skip(f"{why}; this takes the extra `plan`")
    ((_, experiment),) = configure.load_config(config, overrides)
    loaded = staged.load(experiment, topology.count, StandIns("full"))
    compiled, estimated = compiling.compile_step(loaded, topology), memory.estimate(loaded)
    assert compiled.arguments == pytest.approx(estimated.arguments, rel=0.02)
    assert compiled.peak == pytest.approx(estimated.peak, rel=0.1)
    assert compiled.donated >= 0.9 * (estimated.parameters + estimated.optimiser)
    assert planning.misaligned(loaded.placed(loaded.mesh)[:2]) == []
    assert math.isfinite(compiled.flops)

"""`uae plan`, without a compiler and with it."""

import dataclasses
import importlib.util
import json
import math
import types

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from uae_jax import cli
from uae_jax.parallel.mesh import abstract_mesh
from uae_jax.plan import command, compiling, memory, planning, recorded, report, staged, timing, topologies, work
from uae_jax.plan.compiling import GIB
from uae_jax.plan.stand_ins import StandIns
from uae_jax.training import chain, configure
from uae_jax.training.config import MeshConfig

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


def test_only_what_fsdp_cuts_on_tpus_is_blamed_on_fsdp():
    """2432 by fsdp 4 and tensor 2 are parts of 304, by fsdp 64 of 38; 38 by tensor 64 is no matter of mesh.fsdp."""

    def said(*spec, **sizes):
        place = NamedSharding(abstract_mesh(64, **sizes), PartitionSpec(*spec))
        return planning.misaligned([jax.ShapeDtypeStruct((2432, 2432), "float32", sharding=place)])

    assert said("fsdp", "tensor", fsdp=8, tensor=8) == []
    assert said(None, "tensor", tensor=64) == []
    (warning,) = said("fsdp", fsdp=64)
    assert "parts of 38" in warning and "into 32 parts by mesh.fsdp" in warning


def test_axes_within_a_sample_are_no_free_lunch():
    """1024 pixels on 8 GPUs, of which 2 split the batch: tensor=4 has all of the others do the same attention.

    Products of a place's samples in 4 parts are what fsdp=8 does. Attention, 24% of the forward pass and more on the
    way back, is done 4 times where 4 does not divide its heads; sequence=4 cuts its queries, and sends the keys.
    """
    ((_, experiment),) = configure.load_config(
        PRETRAIN, ("--config.data.resolution=1024", "--config.settings.precomputed=true")
    )
    topology, loaded = topologies.parse("h100:8"), staged.load(experiment, 8, StandIns("full"))
    seconds, bytes_, warned = {}, {}, {}
    for axis, sizes in {"fsdp": (8, 1, 1), "tensor": (2, 4, 1), "sequence": (2, 1, 4)}.items():
        loaded = loaded.on(8, MeshConfig(1, *sizes), experiment.batch_size)
        phases, mesh = work.phases(loaded), dict(loaded.mesh.shape)
        seconds[axis] = timing.timed(loaded, phases, topology)[-1].expected
        bytes_[axis] = memory.estimate(loaded).per_sample
        warned[axis] = "; ".join(planning.shared(phases, mesh))
        assert bool(timing.uncounted(phases, mesh)) == (axis != "fsdp")
    assert 1.5 * seconds["fsdp"] < seconds["tensor"] and seconds["fsdp"] <= seconds["sequence"] < 1.2 * seconds["fsdp"]
    assert bytes_["sequence"] < bytes_["tensor"] < bytes_["fsdp"] == pytest.approx(1.59 * GIB, rel=0.01)
    assert warned["fsdp"] == "" and "repeated" not in warned["sequence"]
    assert "repeated on 4 chips: mesh.tensor=4 does not divide its 38 heads" in warned["tensor"]


def test_what_a_gpu_holds_with_more_than_jax_takes_by_itself_is_named(monkeypatch):
    """65 GB of an H100's 80: more than the 60 that JAX takes, less than the 74 of .92."""
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    need = memory.Memory(65 * 10**9, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0)
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(planning.Plan))
    plan = planning.Plan(**nothing | {"topology": topologies.parse("h100:8"), "memory": need})
    said = report._memory(plan)
    assert "limit, 75% of the chip" in said and "IT DOES NOT FIT" in said
    assert "with XLA_PYTHON_CLIENT_MEM_FRACTION=.92" in said
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    assert "IT FITS" in report._memory(plan)


def test_figures_are_written_as_far_as_they_are_known(capsys, tmp_path, monkeypatch):
    """A file that cannot be written fails before anything is planned; a stage that fails leaves those before it."""
    names = []

    def plan(name, *_, **__):
        names.append(name)
        if len(names) > 1:
            raise ValueError("no closed forms")
        return types.SimpleNamespace(name=name, fits=True)

    monkeypatch.setattr(planning, "plan", plan)
    monkeypatch.setattr(report, "text", lambda plan: plan.name)
    monkeypatch.setattr(report, "to_json", lambda plan: plan.name)
    arguments = ("plan", "--config", "configs/alternate.py", "--topology", "v5p:2x2x2", "--json")
    assert cli.main([*arguments, str(tmp_path / "missing" / "plan.json")]) == 1 and not names
    assert "wanted a file in a folder that is there" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main([*arguments, str(tmp_path / "notes.txt")]) == 1 and not names
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert cli.main([*arguments, str(tmp_path / "plan.json")]) == 1 and len(names) == 2
    assert json.loads((tmp_path / "plan.json").read_text()) == names[:1]
    assert cli.main([*arguments, str(tmp_path / "plan.json")]) == 1  # fails at its first
    assert json.loads((tmp_path / "plan.json").read_text()) == names[:1]


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
    experiments = chain.untrained(configure.load_config("configs/alternate.py:size=small"))
    assert {experiment.settings.model for _, experiment in experiments} == {"runs/cold_start/model"}


@pytest.mark.parametrize("case", recorded.entries(), ids=str)
def test_closed_forms_are_what_the_compiler_said(case):
    """Peaks, within 10%.

    Of `understanding_for_gen`, as read off what lives at its peaks: frozen weights in another layout, 1.8 GiB where
    they are split, and none where they lie whole; some 2 GiB of the decoder's last layer.
    """
    loaded = case.load()
    estimated = memory.estimate(loaded)
    assert estimated.peak / GIB == pytest.approx(case.peak_gib, rel=0.1)
    if case.stage == "pretrain" and case.topology == "v5p:2x2x1":
        # 24.19 GiB of it were arguments, without what the step does not read, which the compiler dropped then: the
        # encoder's vision tower, 0.67 B parameters in bfloat16 over 4 chips, and the decoding half of the VAE.
        assert estimated.arguments / GIB == pytest.approx(24.19 + (2 * 0.669e9 + 4 * 0.05e9) / 4 / GIB, rel=0.005)


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

"""Trained parts become one folder in the published layout, complete, small and accounted for."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from tests.tiny.embedded import needed
from tests.tiny.models import write_runs
from uae_jax.tiny import assemble, card
from uae_jax.weights import checkpoint, safetensors, uae
from uae_jax.weights.pretrained import load_pretrained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of random models; not to be changed."""
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def assembled(runs, tmp_path_factory):
    record(runs["encoder"], "caption_sft", "new:tiny", evaluation=0.25)
    output = tmp_path_factory.mktemp("out") / "tiny"
    assemble.assemble(runs, output)
    return output


def record(folder, stage, model, evaluation):
    config = {"stage": stage, "settings": {"model": model}, "steps": 700, "batch_size": 32, "seed": 5}
    (folder / "config.json").write_text(json.dumps(config | {"optimiser": {"learning_rate": 0.001}}))
    rows = [{"step": 1, "time": 100.0}, {"step": 350, "time": 400.0}]
    rows += [{"step": 351, "time": 90_000.0}, {"step": 700, "time": 90_300.0, "evaluation/loss": evaluation}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_part_comes_from_its_run_in_bfloat16(runs, assembled):
    weights = uae.load(assembled)
    encoder, decoder = (uae.load(runs[part] / "model") for part in ("encoder", "decoder"))
    pairs = [
        (weights.encoder, encoder.encoder),
        (weights.projector, decoder.projector),
        (weights.decoder, decoder.decoder),
        (weights.vae, load_pretrained(runs["vae"] / "model")),
    ]
    pairs += [
        (load_pretrained(assembled / "scorers" / part), load_pretrained(runs[part] / "model"))
        for part in assemble.SCORERS
    ]
    for got, wanted in pairs:
        for one, other in zip(leaves(got), leaves(wanted), strict=True):
            assert one.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(one, other.astype(ml_dtypes.bfloat16))


def leaves(model):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]


def test_the_folder_holds_all_that_it_needs_and_no_more_than_twelve_megabytes(assembled):
    for name in ("inference.json", "llm_model/tokenizer.json", "SD3/scheduler/scheduler_config.json", "MODEL_CARD.md"):
        assert (assembled / name).is_file(), name
    for part in assemble.SCORERS:
        assert (assembled / "scorers" / part / "preprocessor_config.json").is_file()
    assert 10e6 < assemble.size_of(assembled) <= assemble.LIMIT_BYTES
    assert f"{assemble.size_of(assembled) / 1000:9.1f} KB  in all" in assemble.table(assembled)
    assert "scorers/dinov3" in assemble.table(assembled)


def test_the_card_tells_how_a_part_was_made(assembled):
    told = (assembled / "MODEL_CARD.md").read_text()
    # 300 s before the pause and 300 s after it.
    assert (
        "- stage `caption_sft`, from `new:tiny`: 700 steps of 32 examples, learning rate 0.001, seed 5, 10 min" in told
    )
    assert "on held-out scenes: loss 0.25" in told
    assert told.count("No record of a run.") == 6
    assert "| encoder | 1,600,864 |" in told


def test_a_missing_part_is_refused(runs, tmp_path):
    some = {part: run for part, run in runs.items() if part != "vae"}
    with pytest.raises(ValueError, match="parts vae are missing"):
        assemble.assemble(some, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused(runs, tmp_path):
    shutil.copytree(runs["clip"], tmp_path / "clip")
    (tmp_path / "clip/model/tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"clip/model/tokenizer.json is not what .* writes; train again"):
        assemble.assemble(runs | {"clip": tmp_path / "clip"}, tmp_path / "out")


def test_another_size_is_refused_and_what_is_there_stays(runs, tmp_path):
    (tmp_path / "llm_model").mkdir()
    (tmp_path / "llm_model/config.json").write_text('{"architectures": ["x"]}')
    with pytest.raises(ValueError, match=r"dinov2 is DINOv3ViTModel of .*, wanted Dinov2Model of"):
        assemble.assemble(runs | {"dinov2": runs["dinov3"]}, tmp_path)
    assert (tmp_path / "llm_model/config.json").read_text() == '{"architectures": ["x"]}'


def test_names_in_the_package_are_found_and_local_folders_told_apart(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert checkpoint.resolve("tiny") == checkpoint.EMBEDDED / "tiny"
    assert checkpoint.resolve("./tiny").samefile(tmp_path / "tiny")
    assert (checkpoint.resolve("tiny/scorers/clip") / "tokenizer.json").is_file()
    with pytest.raises(Exception, match=r"tiny/clip: not in the package; a local folder of that name is ./tiny/clip"):
        checkpoint.resolve("tiny/clip")


@needed
def test_the_shipped_model_is_complete_and_small():
    folder = checkpoint.resolve("tiny")
    assert assemble.size_of(folder) <= assemble.LIMIT_BYTES
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == 9  # encoder with projector, decoder, VAE, two text encoders, four scorers
    assert all(t.dtype == ml_dtypes.bfloat16 for file in files for t in safetensors.open_file(file).values())


def test_tokenizers_are_compared_by_what_they_say(tmp_path):
    for name, text in (("ours", '{"a":[1]}'), ("indented", '{\n  "a": [\n    1\n  ]\n}\n'), ("other", '{"a": [2]}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(text)
    assemble._same_tokenizer(tmp_path / "indented", tmp_path / "ours")  # as transformers writes it
    with pytest.raises(ValueError, match="train again"):
        assemble._same_tokenizer(tmp_path / "other", tmp_path / "ours")


def test_what_a_card_tells_is_kept(runs, assembled, tmp_path):
    """The encoder as it was, and a decoder that went on from the assembled one."""
    before = shutil.copytree(assembled, tmp_path / "before")  # others look at that one
    again = write_runs(tmp_path / "again")
    record(again["decoder"], "pretrain", str(before), evaluation=0.125)
    parts = again | {"encoder": before, "clip": before / "scorers/clip"}
    told = before / card.NAME
    told.write_text(told.read_text().replace("### decoder\n\nNo record of a run.", "### decoder\n\n- old."))
    assemble.assemble(parts, tmp_path / "out")
    made = (tmp_path / "out/MODEL_CARD.md").read_text().partition("## How each part was made")[2]
    sections = {text.split("\n")[0]: text for text in made.split("### ")[1:]}
    assert "`caption_sft`, from `new:tiny`: 700 steps" in sections["encoder"]
    assert sections["decoder"].index("- old.") < sections["decoder"].index("`pretrain`, from")
    assert "No record" in sections["clip"] and "No record" in sections["vae"]


def test_a_run_that_started_from_the_shipped_model_continues_its_history(runs, tmp_path):
    run = write_runs(tmp_path / "again")["decoder"]
    record(run, "pretrain", "tiny", evaluation=0.125)
    made = card.write({}, {"decoder": run}, None).partition("### decoder\n\n")[2].splitlines()
    shipped = (checkpoint.EMBEDDED / "tiny" / card.NAME).read_text().partition("### decoder\n\n")[2].splitlines()
    assert shipped[0].startswith("- stage") and made[0] == shipped[0]
    assert any("`pretrain`, from `tiny`" in line for line in made[1:])

"""The published UAE folder: read, written, converted, and every tensor accounted for."""

import contextlib
import io
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from tests import published
from uae_jax import cli
from uae_jax.pipeline import UAE
from uae_jax.rewards.scorers import Scorer
from uae_jax.weights import checkpoint, uae
from uae_jax.weights.errors import WeightsError

PARTS = ("llm_model", "llm_lora", "dit", "dit_lora", "SD3/vae", "SD3/text_encoder", "SD3/text_encoder_2")
# The wrapped state dict repeats the embedding as the tied head; it is read, and not written a second time.
TINY = checkpoint.resolve("tiny")
TIED = "llm_lora:model.base_model.model.lm_head.weight"


@pytest.fixture
def folder(uae_checkpoint) -> Path:
    return uae_checkpoint[0]


@pytest.fixture(scope="module")
def converted(uae_checkpoint, tmp_path_factory) -> tuple[Path, str]:
    """The native folder, and what converting it printed."""
    root, printed = tmp_path_factory.mktemp("converted") / "native", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["convert", str(uae_checkpoint[0]), str(root)]) == 0
    return root, printed.getvalue()


def all_tensors(root: Path) -> dict[str, checkpoint.Tensor]:
    found = {}
    for part in PARTS:
        place = root / part
        if part == "dit_lora":
            place = place / "adapter_model.safetensors"
        found |= {f"{part}:{key}": tensor for key, tensor in checkpoint.open_checkpoint(place).items()}
    return found


def assert_same_tensors(got: Path, wanted: Path) -> None:
    got, wanted = all_tensors(got), all_tensors(wanted)
    wanted.pop(TIED, None)
    assert got.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert (got[key].dtype, got[key].shape) == (tensor.dtype, tensor.shape), key
        assert got[key].read().tobytes() == tensor.read().tobytes(), key


def assert_same_trees(got, wanted) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_published_to_native_to_published_changes_no_bit(folder, converted, tmp_path, capsys):
    native, said = converted
    assert cli.main(["export", str(native), str(tmp_path / "back")]) == 0
    assert_same_tensors(tmp_path / "back", folder)
    for name in ("llm_model/tokenizer.json", "SD3/scheduler/scheduler_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    for printed in (said, capsys.readouterr().out):
        assert "Qwen2_5_VLForConditionalGeneration" in printed
        assert "encoder LoRA of rank 32, alpha 64" in printed


@pytest.mark.slow
def test_both_layouts_load_alike(folder, converted):
    one, other = uae.load(folder), uae.load(converted[0])
    for part in ("encoder", "projector", "decoder", "vae", "text_encoder", "text_encoder_2"):
        assert getattr(one, part).config == getattr(other, part).config
        assert_same_trees(getattr(other, part).params, getattr(one, part).params)
    for part in ("encoder_lora", "decoder_lora"):
        assert getattr(one, part).config == getattr(other, part).config
        assert_same_trees(getattr(other, part).params, getattr(one, part).params)
    assert one.files == other.files


def test_the_adapter_of_the_encoder_is_rank_32_alpha_64_on_the_language_model_only(folder):
    adapter = uae.load(folder).encoder_lora
    assert (adapter.config.rank, adapter.config.alpha) == (32, 64.0)
    assert set(adapter.params) == {"language"}
    assert set(adapter.params["language"]["layers"]["attn"]) == {"q", "k", "v", "o"}


@pytest.mark.slow
def test_what_llm_lora_holds_wins_over_llm_model(folder, tmp_path):
    # The published code loads llm_lora last, projector and wrapped weights included.
    root = tmp_path / "changed"
    shutil.copytree(folder, root)
    file = next(f for f in root.glob("llm_lora/*.safetensors") if "projector.0.bias" in load_file(f))
    tensors = load_file(file)
    tensors["projector.0.bias"] = tensors["projector.0.bias"] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    before, after = (uae.load(place).projector.params["up"]["bias"] for place in (folder, root))
    np.testing.assert_allclose(after, before + 1)


def test_a_folder_without_adapters_loads(tmp_path):
    published.write(tmp_path, lora=False)
    weights = uae.load(tmp_path)
    assert weights.encoder_lora is None
    assert weights.decoder_lora is None


@pytest.mark.slow
def test_keys_of_a_wrapper_class_are_read(folder, tmp_path):
    root = tmp_path / "wrapped"
    shutil.copytree(folder, root)
    file = root / "llm_model/model.safetensors"
    tensors = {k if k.startswith("projector") else f"model.{k}": v for k, v in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert_same_trees(uae.load(root).encoder.params, uae.load(folder).encoder.params)


def test_a_single_model_converts_and_exports_too(folder, tmp_path):
    assert cli.main(["convert", str(folder), str(tmp_path / "native"), "--subfolder", "SD3/vae"]) == 0
    assert cli.main(["export", str(tmp_path / "native"), str(tmp_path / "back")]) == 0
    got, wanted = (checkpoint.open_checkpoint(place) for place in (tmp_path / "back", folder / "SD3/vae"))
    assert got.keys() == wanted.keys()
    assert all(got[key].read().tobytes() == wanted[key].read().tobytes() for key in wanted)


def test_a_converted_scorer_sees_images_as_it_did(tmp_path):
    """Preprocessing lies beside the weights, and is not its family's default here."""
    native, back = tmp_path / "native", tmp_path / "back"
    assert cli.main(["convert", "tiny/scorers/dinov2", str(native)]) == 0
    assert cli.main(["export", str(native), str(back)]) == 0
    one, *others = (Scorer.from_pretrained(place).preprocessing for place in ("tiny/scorers/dinov2", native, back))
    assert others == [one, one] and (one.shortest, one.side) == (64, 64)


def test_scorers_go_with_their_model(tmp_path):
    native, back = tmp_path / "native", tmp_path / "back"
    assert cli.main(["convert", "tiny", str(native)]) == 0
    assert cli.main(["export", str(native), str(back)]) == 0
    UAE.from_pretrained(back, scorers={}).save_pretrained(back, force=True)
    for place in (native, back):
        names = sorted(file.relative_to(place) for file in (place / "scorers").rglob("*"))
        assert names == sorted(file.relative_to(TINY) for file in (TINY / "scorers").rglob("*")) != []


@pytest.mark.parametrize("command", ["convert", "export"])
def test_what_is_read_is_not_replaced(folder, converted, tmp_path, capsys, command):
    root = tmp_path / "model"
    shutil.copytree(folder if command == "convert" else converted[0], root)
    part = root / ("SD3/vae" if command == "convert" else "vae")
    for source in (root, part):
        assert cli.main([command, str(source), str(root), "--force"]) == 1
        assert f"would replace {source}, which is to be read" in capsys.readouterr().err
    assert (root / ("llm_model" if command == "convert" else "encoder")).is_dir()


def test_alpha_is_guessed_for_the_published_rank_alone(folder, tmp_path):
    root = tmp_path / "other"
    shutil.copytree(folder, root)
    for file in root.glob("llm_lora/*.safetensors"):
        tensors = load_file(file)
        halved = {k: v[:16] for k, v in tensors.items() if ".lora_A." in k}
        halved |= {k: v[:, :16] for k, v in tensors.items() if ".lora_B." in k}
        save_file({k: v.contiguous() for k, v in (tensors | halved).items()}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"no adapter_config\.json says its alpha.* and this is of rank 16"):
        uae.load(root)
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 8, "target_modules": ["q_proj"]}
    checkpoint.write_json(root / "llm_lora/adapter_config.json", config)
    assert uae.load(root).encoder_lora.config.alpha == 8


def test_a_schedule_of_another_kind_is_refused_and_a_shift_left_out_is_that_of_diffusers(folder, tmp_path):
    root = tmp_path / "other"
    shutil.copytree(folder, root)
    file = root / "SD3/scheduler/scheduler_config.json"
    stated = {name: value for name, value in checkpoint.read_json(file).items() if name != "shift"}
    checkpoint.write_json(file, stated)
    theirs = FlowMatchEulerDiscreteScheduler.from_pretrained(file.parent)
    assert uae.scheduler_shift(uae.load(root)) == theirs.config.shift == 1
    checkpoint.write_json(file, stated | {"use_dynamic_shifting": True})
    with pytest.raises(WeightsError, match="use_dynamic_shifting is True, wanted a static shift alone"):
        uae.look_for(root)


@pytest.mark.parametrize("part", ["SD3/text_encoder_2", "dit", "dit_lora"])
def test_looking_finds_what_is_wrong_with_any_part_and_reads_no_weights(folder, tmp_path, monkeypatch, part):
    root = tmp_path / "broken"
    shutil.copytree(folder, root)
    uae.look_for(root)
    file = next((root / part).glob("*.safetensors"))
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name] = tensors[name][..., :1].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    monkeypatch.setattr(np, "fromfile", None)  # by which tensors are read
    with pytest.raises(WeightsError, match=re.escape(str(root / part))):
        uae.look_for(root)


@pytest.mark.slow
def test_conversion_to_bfloat16_halves_the_base_and_leaves_the_adapters(folder, tmp_path):
    assert cli.main(["convert", str(folder), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    weights = uae.load(tmp_path / "half")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(weights.decoder.params)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(weights.decoder_lora.params)} == {"float32"}


def test_a_part_that_is_missing_is_named(folder, tmp_path):
    root = tmp_path / "broken"
    shutil.copytree(folder, root)
    (root / "llm_lora/model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00002-of-00003.safetensors: missing shard"):
        uae.load(root)


@pytest.mark.parametrize("command", ["convert", "export"])
def test_nothing_is_overwritten_without_force(folder, tmp_path, capsys, command):
    there = tmp_path / "there"
    there.mkdir()
    (there / "thesis.txt").write_text("mine")
    assert cli.main([command, str(folder), str(there)]) == 1
    assert "exists" in capsys.readouterr().err
    assert cli.main([command, str(folder), str(there), "--force"]) == 1  # not even then: it is no checkpoint
    assert (there / "thesis.txt").read_text() == "mine"


def test_the_wrong_direction_says_which_is_right(folder, converted, tmp_path, capsys):
    assert cli.main(["export", str(folder), str(tmp_path / "x")]) == 1
    assert "native" in capsys.readouterr().err
    assert cli.main(["convert", str(converted[0]), str(tmp_path / "y")]) == 1
    assert "native already" in capsys.readouterr().err


def test_no_command_and_bad_usage_exit_with_2(capsys):
    assert cli.main([]) == 2
    with pytest.raises(SystemExit) as exit_:
        cli.main(["convert"])
    assert exit_.value.code == 2


@pytest.mark.parametrize(
    ("made", "named", "message"),
    [
        (("a/llm_model", "a/dit"), "a", "a: no UAE checkpoint: SD3 is not in it; download or copy it again"),
        (("a/llm_model",), "a", "a: no UAE checkpoint: dit, SD3 are not in it; download or copy it again"),
        (("a/b/llm_model", "a/b/dit", "a/b/SD3"), "a", "a/b is one: name that"),
        (("a/b/llm_model", "a/b/dit", "a/b/SD3"), "a/b/dit", "a/b is one: name that"),
        (("a/b",), "a", "wanted llm_model, dit and SD3 (and maybe llm_lora, dit_lora), or uae.json"),
    ],
)
def test_a_folder_that_is_no_checkpoint_says_what_it_lacks_and_where_one_is(made, named, message, tmp_path):
    for name in made:
        (tmp_path / name).mkdir(parents=True)
    for look in (uae.look_for, uae.load):
        with pytest.raises(WeightsError, match=re.escape(message)):
            look(tmp_path / named)


def test_models_are_cast_as_they_are_written_and_adapters_are_not(folder, tmp_path):
    weights = uae.load(folder)
    uae.save_published(weights, tmp_path / "cast", dtype="bfloat16")
    got = uae.load(tmp_path / "cast")
    for part in ("encoder", "projector", "decoder", "vae", "text_encoder", "text_encoder_2"):
        cast = jax.tree.map(lambda x: x.astype("bfloat16"), getattr(weights, part).params)  # by XLA, all at once
        assert_same_trees(getattr(got, part).params, cast)
    for part in ("encoder_lora", "decoder_lora"):
        assert_same_trees(getattr(got, part).params, getattr(weights, part).params)
    assert {leaf.dtype for leaf in jax.tree.leaves(getattr(got, part).params)} == {np.dtype(np.float32)}

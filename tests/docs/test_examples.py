"""Python in docs/ does what the text around it says."""

import ast
import importlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.docs.pages import PAGES, ROOT, blocks
from uae_jax.training import configure
from uae_jax.weights import uae
from uae_jax.weights.checkpoint import EMBEDDED

GUIDES = ROOT / "docs/guides"


def run(code):
    names = {}
    exec(compile(code, "<docs>", "exec"), names)  # our own documentation
    return names


def block(page, text):
    """The one block of a guide that holds `text`."""
    (found,) = [code for code in blocks(GUIDES / page, "python") if text in code]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_imported_from_this_package_is_there(page):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "uae_jax":
                module = importlib.import_module(node.module)
                for each in node.names:
                    if not hasattr(module, each.name):
                        importlib.import_module(f"{node.module}.{each.name}")


@pytest.fixture
def configs(tmp_path):
    """A copy of configs/, to put files in."""
    return shutil.copytree(ROOT / "configs", tmp_path / "configs")


def test_a_config_that_mixes_sources(configs):
    (configs / "mine.py").write_text(block("data.md", "def get_config"))
    ((_, experiment),) = configure.load_config(str(configs / "mine.py"))
    assert [source.weight for source in experiment.data.sources] == [3.0, 1.0]
    assert experiment.data.aspects == (0.75, 1.0, 1.33)


def test_a_reward_function_and_its_config(configs, tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(block("reward.md", "def same_colours"))
    monkeypatch.syspath_prepend(tmp_path)
    (configs / "mine.py").write_text(block("reward.md", "def get_config"))
    ((_, experiment),) = configure.load_config(str(configs / "mine.py"))
    assert [(part.name, part.weight) for part in experiment.settings.reward] == [
        ("clip", 1.0),
        ("colours", 0.2),
        ("dinov2", 0.0),
    ]
    black, white = jnp.zeros((2, 4, 4, 3)), jnp.ones((2, 4, 4, 3))
    function = jax.jit(importlib.import_module("my_rewards").same_colours)
    np.testing.assert_allclose(function(black, black), [1, 1])
    np.testing.assert_allclose(function(black, white), [-1, -1])


def test_a_reward_on_the_host():
    function = run(block("reward.md", "@on_host"))["judged_elsewhere"]
    black, white = jnp.zeros((2, 4, 4, 3)), jnp.ones((2, 4, 4, 3))
    np.testing.assert_allclose(jax.jit(function)(black, white), [-1, -1])


@pytest.mark.slow
def test_base_models_without_a_projector_are_put_together(uae_checkpoint, tmp_path):
    # The tiny encoder stands for Qwen2.5-VL, the random checkpoint's decoder and VAE for SD3.5.
    sd3 = tmp_path / "sd3"
    shutil.copytree(uae_checkpoint[0] / "SD3", sd3)
    shutil.copytree(uae_checkpoint[0] / "dit", sd3 / "transformer")
    encoder = tmp_path / "encoder"
    shutil.copytree(uae_checkpoint[0] / "llm_model", encoder)
    without_projector(encoder)
    run(block("base_models.md", "def assemble"))["assemble"](str(encoder), str(sd3), str(tmp_path / "mine"))
    weights = uae.load(tmp_path / "mine")
    assert weights.projector.config.width == weights.encoder.config.text.width
    assert weights.projector.config.out == weights.decoder.config.context_dim
    assert {"llm_model/tokenizer.json", "SD3/scheduler/scheduler_config.json"} <= weights.files.keys()


def without_projector(folder):
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    tensors = {key: value for key, value in load_file(file).items() if "projector" not in key}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.slow
def test_diffusers_paints_the_same(uae_checkpoint, small_uae):
    torch = pytest.importorskip("torch")
    noise = np.random.default_rng(0).normal(size=(1, small_uae.engine.vae.config.latent_channels, 8, 8))
    paint = run(block("export.md", "def paint_with_diffusers"))["paint_with_diffusers"]
    theirs = paint(str(uae_checkpoint[0]), "a red cube", torch.tensor(noise, dtype=torch.float32), 64, 3, 5.0)
    (ours,) = small_uae.generate("a red cube", steps=3, guidance=5.0, size=64, latents=noise)
    gap = np.abs(np.asarray(ours, np.int32) - np.asarray(theirs, np.int32))
    assert gap.max() <= 1  # rounding to whole levels; another caption gives tens of levels


def test_the_embedded_model_is_where_the_guides_take_it_from():
    assert (EMBEDDED / "tiny/llm_model/config.json").is_file()

"""Weights that changed in place are told from what they were; where nothing that counts changed, nothing is told."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.weights import fingerprint
from uae_jax.weights.errors import WeightsError


@pytest.fixture
def model(tmp_path):
    for name, content in (("dit/model.safetensors", b"12345678"), ("llm_model/tokenizer.json", b"{}")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_small_files_count_by_content(model):
    before = fingerprint.of_model(model)
    assert before.startswith(f"{model.resolve()} (")
    os.utime(model / "dit/model.safetensors", (0, 0))  # as a fresh download has another date
    (model / "scorers/clip").mkdir(parents=True)
    (model / "scorers/clip/config.json").write_text("{}")
    assert fingerprint.of_model(model) == before
    (model / "llm_model/tokenizer.json").write_text("[]")
    assert fingerprint.of_model(model) != before


def test_large_files_count_by_size_and_date(model, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE", 4)
    weights = model / "dit/model.safetensors"
    os.utime(weights, (1, 1))
    before = fingerprint.of_model(model)
    weights.write_bytes(b"87654321")
    os.utime(weights, (1, 1))
    assert fingerprint.of_model(model) == before  # not read
    os.utime(weights, (2, 2))
    assert fingerprint.of_model(model) != before


def test_of_a_processor_its_settings_count(model):
    before = fingerprint.of_processor(model / "llm_model")
    (model / "llm_model/model.safetensors").write_bytes(b"weights")
    assert fingerprint.of_processor(model / "llm_model") == before
    (model / "llm_model/tokenizer.json").write_text("[]")
    assert fingerprint.of_processor(model / "llm_model") != before


def test_what_is_not_there_has_none(tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        fingerprint.of_model(tmp_path / "none")


def test_numbers_count_whatever_holds_them():
    """In float32 all of bfloat16 is exact; and sums modulo 2^32 are the same in any order, on any mesh."""
    rng = np.random.default_rng(0)
    tree = {"a": jnp.asarray(rng.standard_normal((8, 6)), jnp.bfloat16), "b": {"c": jnp.ones(3, jnp.bfloat16)}}
    digest = fingerprint.of_values(tree)
    assert fingerprint.of_values(jax.tree.map(lambda x: x.astype(jnp.float32), tree)) == digest
    mesh = jax.make_mesh((8,), ("x",))
    split = jax.device_put(tree["a"], jax.NamedSharding(mesh, jax.P("x")))
    assert fingerprint.of_values({**tree, "a": split}) == digest
    swapped = tree["a"].at[0].set(tree["a"][1]).at[1].set(tree["a"][0])
    for other in ({**tree, "a": swapped}, {"b": tree["a"], "a": tree["b"]}, {**tree, "a": tree["a"].at[3, 3].add(1)}):
        assert fingerprint.of_values(other) != digest

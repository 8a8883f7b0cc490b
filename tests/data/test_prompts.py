"""Which tokens answers are made of, and which end them."""

import json
import shutil

import numpy as np
import pytest

from uae_jax.data.prompts import PromptBuilder
from uae_jax.models.qwen2_5_vl import tiny
from uae_jax.weights import checkpoint


@pytest.fixture(scope="module")
def folder():
    return checkpoint.resolve("tiny/llm_model")


def test_answers_are_made_of_what_is_read_back_from_them(folder):
    prompts = PromptBuilder.from_folder(folder, tiny())
    allowed = prompts.answer_ids
    assert allowed.shape == (tiny().text.vocab,) and allowed.dtype == bool
    for token in range(len(allowed)):
        kept = bool(prompts.tokenizer.decode([token], skip_special_tokens=True))
        assert allowed[token] == (kept or token in prompts.stop_ids), token
    assert not allowed[tiny().image_token_id] and not allowed[prompts.pad_id] and allowed[prompts.stop_ids[0]]


def test_rows_of_the_table_that_no_token_has_are_not_drawn(folder):
    # The published table has 151936 rows for 151665 tokens.
    prompts = PromptBuilder.from_folder(folder, tiny())
    small = prompts.config.text.vocab
    prompts.config = type("Config", (), {"text": type("T", (), {"vocab": small + 7}), "eos_token_id": 1})
    assert not prompts.answer_ids[small:].any()


@pytest.mark.parametrize("ends", [[1004, 1002], 1002, None])
def test_generation_config_may_name_further_ends(folder, tmp_path, ends):
    """As the published one does, whose config.json knows one of two."""
    shutil.copytree(folder, tmp_path / "llm")
    (tmp_path / "llm/generation_config.json").write_text(json.dumps({"eos_token_id": ends, "temperature": 0.1}))
    prompts = PromptBuilder.from_folder(tmp_path / "llm", tiny())
    assert prompts.stop_ids == ((1004,) if ends is None else (1004, 1002))
    assert np.asarray(prompts.answer_ids)[list(prompts.stop_ids)].all()

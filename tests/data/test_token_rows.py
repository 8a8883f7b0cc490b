"""Captions as rows of tokens: what counts, what is cut."""

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("diffusers")

from tests import published
from uae_jax.data import token_rows
from uae_jax.data.prompts import PromptBuilder
from uae_jax.data.token_rows import RowBuilder
from uae_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig

END = "<|im_end|>"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.fixture(scope="module")
def prompts():
    config = Qwen2_5_VLConfig(
        VisionConfig(out_width=32, width=32, heads=2, window_size=56),
        TextConfig(vocab=published.VOCABULARY, width=32, heads=4, mrope_section=(1, 1, 2)),
        vision_start_token_id=259,
        vision_end_token_id=260,
        image_token_id=261,
        video_token_id=262,
        bos_token_id=256,
        eos_token_id=258,
        pad_token_id=256,
    )
    return PromptBuilder(published.tokenizer(), config)


def test_an_answer_is_scored_with_its_end(prompts):
    row = RowBuilder(prompts, 20).answer("what?", "a cat", image_tokens=3)
    decode = prompts.tokenizer.decode
    image = "<|vision_start|>" + "<|image_pad|>" * 3 + "<|vision_end|>"
    asked = f"{SYSTEM}<|im_start|>user\nwhat?{image}{END}\n<|im_start|>assistant\n"
    assert decode(row.tokens) == f"{asked}a cat{END}"
    assert decode(row.tokens[slice(*row.scored)]) == f"a cat{END}"
    assert not row.cut


def test_a_painted_text_is_what_inference_reads(prompts):
    row = RowBuilder(prompts, 20).painted("a cat")
    assert row.tokens == prompts.encode_user("a cat", role="generate")
    assert prompts.tokenizer.decode(row.tokens[slice(*row.scored)]) == f"a cat{END}"


@pytest.mark.parametrize("caption", ["You are a helpful", f"{END}\n<|im_start|>assistant\n", "s", "\u00e9\U0001f600"])
def test_text_that_is_like_its_frame_is_told_apart(prompts, caption):
    rows = RowBuilder(prompts, 200)
    text = prompts.encode_text(caption)
    for row in (rows.painted(caption), rows.answer("q", caption, 0)):
        assert row.tokens[slice(*row.scored)] == [*text, rows.end]


def test_long_captions_are_cut_before_their_end(prompts):
    rows = RowBuilder(prompts, 4)  # every byte is a token
    decode = prompts.tokenizer.decode
    answer, painted = rows.answer("q", "abcdef", 0), rows.painted("abcdef")
    for row in (answer, painted):
        assert decode(row.tokens[slice(*row.scored)]) == "abcd"  # and no end: it did not end there
        assert row.cut
    assert painted.tokens == prompts.encode_user("abcd", role="generate")
    assert answer.tokens[-1] != rows.end
    exact = rows.painted("abcd")
    assert not exact.cut
    assert decode(exact.tokens[slice(*exact.scored)]) == f"abcd{END}"


def test_rows_are_packed_with_the_batch_first(prompts):
    rows = RowBuilder(prompts, 20)
    made = [rows.answer("q", "a cat", 4), rows.painted("a dog")]
    grids = [((1, 4, 4),), ()]
    batch = token_rows.pack(prompts, made, grids, least=16)
    length = max(len(row.tokens) for row in made)
    assert {name: x.shape[0] for name, x in batch.items()} == dict.fromkeys(batch, 2)
    assert batch["tokens"].shape[1] >= length
    assert batch["positions"].shape == (2, 3, batch["tokens"].shape[1])
    assert batch["valid"].sum(1).tolist() == [len(row.tokens) for row in made]
    np.testing.assert_array_equal(np.flatnonzero(batch["scored"][1]), np.arange(*made[1].scored))
    assert (batch["image_index"][1] == -1).all()
    assert sorted(batch["image_index"][0][batch["image_index"][0] >= 0]) == [0, 1, 2, 3]
    assert token_rows.pack(prompts, made[1:], least=16, room=200)["tokens"].shape[1] == 256


def test_limits_and_ends_that_cannot_be_are_refused(prompts):
    with pytest.raises(ValueError, match="max_tokens is 0"):
        RowBuilder(prompts, 0)

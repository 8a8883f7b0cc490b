"""Captions put under the role `generate` on the device are what the host would have packed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.data.prompts import PromptBuilder
from uae_jax.data.token_rows import RowBuilder
from uae_jax.models.qwen2_5_vl import config as qwen
from uae_jax.sampling import captions
from uae_jax.sampling.captions import Frame
from uae_jax.sampling.text import Generation
from uae_jax.stages import painted_text
from uae_jax.weights import checkpoint

TEXTS = ("a red circle", "two small striped blue squares at the top left and in the center.", "a", "")
ROOM = 24


def builder(pad_positions="ones"):
    return PromptBuilder.from_folder(checkpoint.EMBEDDED / "tiny/llm_model", qwen.tiny(), pad_positions=pad_positions)


def written(prompts, texts, room=ROOM):
    """What `text.generate` would have left: tokens, and the end where there is room for it."""
    end = prompts.tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows = [prompts.encode_text(text) for text in texts]
    stopped = np.array([len(row) < room for row in rows])
    rows = [[*row, end][:room] for row in rows]
    tokens = np.full((len(rows), room), prompts.pad_id, np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    lengths = np.array([len(row) for row in rows], np.int32)
    return Generation(jnp.asarray(tokens), jnp.asarray(lengths), jnp.zeros(tokens.shape), jnp.asarray(stopped))


@pytest.mark.parametrize("pad_positions", ["ones", "zeros", "running"])
@pytest.mark.parametrize("negative", [0, 27])  # shorter than most, and longer than some
def test_rows_are_those_of_the_host(pad_positions, negative):
    prompts = builder(pad_positions)
    wanted = painted_text.tokens_of(prompts, RowBuilder(prompts, 160), TEXTS, negative, 32)
    got = jax.jit(lambda w: captions.texts(Frame.of(prompts), w, negative))(written(prompts, TEXTS))
    np.testing.assert_array_equal(got["lengths"], wanted["lengths"])
    width = min(got["tokens"].shape[1], wanted["tokens"].shape[1])
    for name in ("tokens", "valid", "positions"):
        np.testing.assert_array_equal(got[name][..., :width], wanted[name][..., :width], err_msg=name)
        assert not got["valid"][:, width:].any() and not wanted["valid"][:, width:].any()


def test_a_caption_that_was_cut_off_keeps_its_last_word():
    # Ten tokens of room: the text has more, so no end was drawn, and all ten are the text's own.
    prompts = builder()
    whole = prompts.encode_text(TEXTS[1])
    got = captions.texts(Frame.of(prompts), written(prompts, [TEXTS[1]], room=10))
    head, tail = Frame.of(prompts).head, Frame.of(prompts).tail
    assert got["tokens"][0][: int(got["valid"].sum())].tolist() == [*head, *whole[:10], *tail]


def test_rows_are_as_long_as_the_negative_at_least():
    prompts = builder()
    got = captions.texts(Frame.of(prompts), written(prompts, ["a"], room=4), least=60)
    assert got["tokens"].shape == (1, 60) and int(got["lengths"][0]) == 60


def test_strings_are_the_captions():
    prompts = builder()
    assert captions.strings(prompts, written(prompts, TEXTS[:2])) == list(TEXTS[:2])

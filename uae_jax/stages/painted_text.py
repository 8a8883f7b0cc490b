"""The texts that a decoder is to paint: rows of tokens, and the hidden states that the encoder makes of them.

As in inference, a text and the negative prompt are read at one length: what is shorter is padded, padding sees the text
before it, and the decoder sees that padding (see `uae_jax.sampling.conditioning`).

Letters: B texts, T tokens, N tokens of the negative, D width of the encoder.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.data import token_rows
from uae_jax.data.prompts import PromptBuilder, bucket
from uae_jax.data.token_rows import Row, RowBuilder
from uae_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from uae_jax.models.qwen2_5_vl.prompts import Prompts
from uae_jax.sampling import conditioning

Array = jax.Array


def tokens_of(prompts: PromptBuilder, rows: RowBuilder, captions: Sequence[str], negative: int, least: int) -> dict:
    """Packs captions under the role `generate`.

    Args:
      prompts, rows: tokenizer, template and limit.
      captions: B of them.
      negative: N.
      least: see `token_rows.pack`.

    Returns:
      "tokens" i32[B, T], "valid" bool[B, T], "positions" i32[B, 3, T], "cut" bool[B], and "lengths" i32[B], how many
      positions the decoder sees, at least N.
    """
    # All processes of a run must make one shape, and none sees the others' captions.
    room = max(negative, rows.longest()) if jax.process_count() > 1 else negative
    packed = token_rows.pack(prompts, [rows.painted(caption) for caption in captions], least=least, room=room)
    del packed["scored"]
    return {**packed, "lengths": np.maximum(packed["valid"].sum(axis=1), negative).astype(np.int32)}


def states_of(contexts: Sequence[np.ndarray], least: int, longest: int) -> dict:
    """Packs hidden states that were computed beforehand, [length, D] each.

    Args:
      contexts: B of them.
      least: the smallest T, see `token_rows.pack`.
      longest: that there can be; of several processes each makes room for it, as none sees the others' texts.

    Returns:
      "context" [B, T, D] in their dtype, zero behind the end, and "lengths" i32[B].
    """
    lengths = np.array([len(context) for context in contexts], np.int32)
    several = jax.process_count() > 1
    if several and lengths.max() > longest:
        raise ValueError(f"a text has {lengths.max()} hidden states, wanted at most {longest}; raise max_tokens")
    shape = (len(contexts), bucket(longest if several else int(lengths.max()), least), contexts[0].shape[1])
    packed = np.zeros(shape, contexts[0].dtype)
    for row, context in zip(packed, contexts, strict=True):
        row[: len(context)] = context
    return {"context": packed, "lengths": lengths}


def hidden_states(encoder: Qwen2_5_VL, variables: dict[str, Any], batch: dict) -> Array:
    """Reads what `tokens_of` packed: [B, T, D], before the projector, padding included."""
    rows = batch["tokens"].shape[0]
    prompts = Prompts(batch["tokens"], batch["valid"], batch["positions"].swapaxes(0, 1), jnp.zeros((rows,), jnp.int32))
    return conditioning.text_hidden_states(encoder, variables, prompts)


def negative_tokens(prompts: PromptBuilder, text: str) -> dict:
    """The negative prompt as one row with one place of padding behind it, for `hidden_states`: [1, N + 1].

    Padding that is numbered alike has one hidden state, wherever it stands, so one place of it stands for all.
    """
    tokens = prompts.encode_user(text, role="generate")
    return token_rows.pack(prompts, [Row(tokens, (0, 0), False)], least=len(tokens) + 1)


def widened(negative: Array, length: int) -> Array:
    """The hidden states of the negative [N + 1, D] at a length T: its padding repeated, or cut off."""
    return negative[jnp.minimum(jnp.arange(length), negative.shape[0] - 1)]

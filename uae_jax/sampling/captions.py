"""Captions that were just written, as texts to paint: put under the role `generate` where they lie, on the device.

What the decoder is told is made of the very tokens that were drawn; nothing is decoded and tokenised again, so the
tokens that are rewarded are those that were painted.

Letters: R captions, N places of each, H tokens before a text, F behind it, T = H + N + F places of a text.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.data.prompts import PromptBuilder
from uae_jax.data.token_rows import END_TOKEN
from uae_jax.sampling.text import Generation

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Frame:
    """What stands around every text that is to be painted.

    Attributes:
      head, tail: token numbers before and behind it.
      pad_id: what fills rows up.
      pad_positions: how padding is numbered, "ones", "zeros" or "running", see `mrope_positions`.
    """

    head: tuple[int, ...]
    tail: tuple[int, ...]
    pad_id: int
    pad_positions: str

    @classmethod
    def of(cls, prompts: PromptBuilder) -> "Frame":
        """Reads it off the chat template."""
        tokens = prompts.encode_user("", role="generate")
        end = prompts.tokenizer.convert_tokens_to_ids(END_TOKEN)
        cut = len(tokens) - 1 - tokens[::-1].index(end)  # the last of its kind ends the text
        return cls(tuple(tokens[:cut]), tuple(tokens[cut:]), prompts.pad_id, prompts.pad_positions)

    @property
    def length(self) -> int:
        """H + F."""
        return len(self.head) + len(self.tail)


def texts(frame: Frame, written: Generation, least: int = 0) -> dict[str, Array]:
    """Rows as `painted_text.tokens_of` packs them, of captions as `text.generate` wrote them. Pure.

    Args:
      frame: head and tail.
      written: R captions; the token that ended one is left out.
      least: positions that the decoder sees at least, the length of the negative prompt; T is no smaller.

    Returns:
      "tokens" i32[R, T], "valid" bool[R, T], "positions" i32[R, 3, T], "lengths" i32[R].
    """
    said = written.lengths - written.stopped  # the tokens of the text itself
    head, tail = len(frame.head), len(frame.tail)
    place = jnp.arange(max(head + written.tokens.shape[1] + tail, least))
    own = said[:, None]
    # Before, within, behind: every place looks its token up in the row [head, caption, tail, padding].
    rows = jnp.concatenate(
        [
            jnp.broadcast_to(jnp.asarray(frame.head, jnp.int32), (len(said), head)),
            written.tokens,
            jnp.broadcast_to(jnp.asarray((*frame.tail, frame.pad_id), jnp.int32), (len(said), tail + 1)),
        ],
        axis=1,
    )
    skipped = written.tokens.shape[1] - own
    source = jnp.where(place < head + own, place, jnp.minimum(place + skipped, rows.shape[1] - 1))
    tokens = jnp.take_along_axis(rows, source, axis=1)
    length = head + own + tail
    valid = place < length
    filler = {"ones": 1, "zeros": 0, "running": place}[frame.pad_positions]
    positions = jnp.where(valid, place, filler).astype(jnp.int32)
    return {
        "tokens": tokens,
        "valid": valid,
        "positions": jnp.broadcast_to(positions[:, None], (len(said), 3, len(place))),
        "lengths": jnp.maximum(length[:, 0], least).astype(jnp.int32),
    }


def strings(prompts: PromptBuilder, written: Generation) -> list[str]:
    """The captions as text, on the host."""
    tokens, lengths = np.asarray(written.tokens), np.asarray(written.lengths)
    return [prompts.decode(row[:length]) for row, length in zip(tokens, lengths, strict=True)]

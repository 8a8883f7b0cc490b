"""Captions as rows of tokens to learn from: which tokens there are, which of them count, what was cut.

A caption is met in two ways: as the answer to a question about an image, and as a text that is to be painted, under
the role `generate`. Long captions are cut at a limit, and say so; a cut one does not count the token that would have
ended it, so that nobody learns to stop in the middle of a sentence.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from uae_jax.data.prompts import PromptBuilder, bucket
from uae_jax.models.qwen2_5_vl.positions import Grids, image_index, mrope_positions

END_TOKEN = "<|im_end|>"


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of tokens.

    Attributes:
      tokens: all of them.
      scored: (first, behind the last) of the caption's own, and the token that ends it.
      cut: whether the caption was longer than the limit.
    """

    tokens: list[int]
    scored: tuple[int, int]
    cut: bool


class RowBuilder:
    """Makes rows with one tokenizer and chat template."""

    def __init__(self, prompts: PromptBuilder, max_tokens: int):
        """Keeps what it is given.

        Args:
          prompts: tokenizer and template.
          max_tokens: of a caption, its end not counted.

        Raises:
          ValueError: if the limit is below 1, or `END_TOKEN` is not what ends an answer.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}, wanted at least 1")
        self.prompts, self.max_tokens = prompts, max_tokens
        self.end = prompts.tokenizer.convert_tokens_to_ids(END_TOKEN)
        if self.end not in prompts.stop_ids:
            raise ValueError(f"{END_TOKEN} is token {self.end}, wanted one of {prompts.stop_ids}, which end an answer")
        self._asked: dict[tuple[str, int], list[int]] = {}
        self._frame = prompts.encode_user("", role="generate")  # what stands around every text

    def answer(self, question: str, caption: str, image_tokens: int) -> Row:
        """A question about one image of so many merged tokens (0: about none), and the caption as its answer."""
        key = question, image_tokens
        if key not in self._asked:
            placeholder = self.prompts.config.image_token_id
            asked = self.prompts.encode_user(question, images=int(image_tokens > 0))
            self._asked[key] = [t for token in asked for t in [token] * (image_tokens if token == placeholder else 1)]
        asked, tokens = self._asked[key], self.prompts.encode_text(caption)
        cut = len(tokens) > self.max_tokens
        row = [*asked, *tokens[: self.max_tokens], *([] if cut else [self.end])]
        return Row(row, (len(asked), len(row)), cut)

    def longest(self, question: str | None = None, image_tokens: int = 0) -> int:
        """Tokens of the longest row that there can be: of `painted`, and, with a question, of `answer`."""
        painted = len(self._frame) + self.max_tokens + 1
        if question is None:
            return painted
        return max(painted, len(self.answer(question, "", image_tokens).tokens) + self.max_tokens)

    def painted(self, caption: str) -> Row:
        """The caption under the role `generate`, with the header of an answer behind it, as the decoder's text."""
        tokens = self.prompts.encode_user(caption, role="generate")
        first = _common(tokens, self._frame)
        last = _common(tokens[first:][::-1], self._frame[first:][::-1])
        count = len(tokens) - first - last
        if count <= self.max_tokens:
            return Row(tokens, (first, first + count + 1), False)
        kept = first + self.max_tokens
        return Row([*tokens[:kept], *tokens[len(tokens) - last :]], (first, kept), True)


def pack(
    prompts: PromptBuilder, rows: Sequence[Row], grids: Grids | None = None, least: int = 64, room: int = 0
) -> dict:
    """Pads rows to one of a few lengths T.

    Args:
      prompts: what pads, and how padding is numbered.
      rows: B of them.
      grids: the (1, h, w) in patches of each row's images; None: no row has any.
      least: the smallest T, see `bucket`.
      room: T is at least this, rounded up likewise.

    Returns:
      "tokens" i32[B, T], "valid" bool[B, T], "scored" bool[B, T], "positions" i32[B, 3, T], "cut" bool[B], and, with
      grids, "image_index" i32[B, T].
    """
    length = bucket(max(room, *(len(row.tokens) for row in rows)), least)
    tokens = np.full((len(rows), length), prompts.pad_id, np.int32)
    valid, scored = np.zeros((2, len(rows), length), bool)
    for b, row in enumerate(rows):
        tokens[b, : len(row.tokens)] = row.tokens
        valid[b, : len(row.tokens)] = True
        scored[b, row.scored[0] : row.scored[1]] = True
    images = [[] for _ in rows] if grids is None else grids
    positions, _ = mrope_positions(tokens, images, valid, prompts.config, pad_positions=prompts.pad_positions)
    packed = {
        "tokens": tokens,
        "valid": valid,
        "scored": scored,
        "positions": np.ascontiguousarray(positions.swapaxes(0, 1)),
        "cut": np.array([row.cut for row in rows]),
    }
    return packed if grids is None else {**packed, "image_index": image_index(tokens, images, prompts.config)}


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))

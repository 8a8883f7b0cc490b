"""Rows of tokens into one array of few possible shapes; what does not fit is cut, and said to be cut."""

from collections.abc import Sequence

import numpy as np


def pad_tokens(
    rows: Sequence[Sequence[int]], buckets: Sequence[int], pad_id: int, keep_last: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pads token rows on the right to the smallest bucket that holds them all.

    Args:
      rows: tokens of each text; at least one row.
      buckets: lengths T that may come out, in any order. Rows longer than the longest are cut to it.
      pad_id: what rows are filled up with.
      keep_last: of a row that is cut, its last so many tokens stay (1 for an end-of-text token); None: only its start.

    Returns:
      (tokens i32[B, T], lengths i32[B] without padding, cut bool[B]).

    Raises:
      ValueError: if there are no rows or buckets, a bucket is not positive, or `keep_last` does not fit.
    """
    if not len(rows):
        raise ValueError("there are no rows of tokens, wanted at least one")
    if not len(buckets) or min(buckets) < 1:
        raise ValueError(f"buckets are {tuple(buckets)}, wanted at least one length of at least 1")
    longest, last = max(buckets), keep_last or 0
    if not 0 <= last <= longest:
        raise ValueError(f"keep_last is {keep_last}, wanted 0 to {longest}, the longest bucket")
    lengths = np.array([min(len(row), longest) for row in rows], np.int32)
    cut = np.array([len(row) > longest for row in rows])
    tokens = np.full((len(rows), min(b for b in buckets if b >= lengths.max())), pad_id, np.int32)
    for i, row in enumerate(rows):
        if cut[i]:
            row = [*row[: longest - last], *row[len(row) - last :]]
        tokens[i, : lengths[i]] = row
    return tokens, lengths, cut

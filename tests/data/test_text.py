"""Padding tokens to few shapes, with nothing cut in silence."""

import numpy as np
import pytest

from uae_jax.data.text import pad_tokens


def test_rows_are_padded_to_the_smallest_bucket_that_holds_all():
    tokens, lengths, cut = pad_tokens([[5, 6, 7], [8]], (8, 4, 16), pad_id=-1)
    assert tokens.tolist() == [[5, 6, 7, -1], [8, -1, -1, -1]]
    assert lengths.tolist() == [3, 1] and cut.tolist() == [False, False]
    assert tokens.dtype == lengths.dtype == np.int32
    assert pad_tokens([[1] * 4], (4, 8), 0)[0].shape == (1, 4)  # just fits
    assert pad_tokens([[1] * 5], (4, 8), 0)[0].shape == (1, 8)


def test_a_long_row_is_cut_at_the_longest_bucket_and_said_to_be():
    tokens, lengths, cut = pad_tokens([list(range(10)), [1, 2, 3, 4], [1]], (2, 4), pad_id=0)
    assert tokens.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [1, 0, 0, 0]]
    assert lengths.tolist() == [4, 4, 1]
    assert cut.tolist() == [True, False, False]  # a row that just fits is whole


def test_the_last_tokens_of_a_cut_row_can_stay():
    rows = [[*range(100, 109), 2], [7, 2]]
    tokens, _, cut = pad_tokens(rows, (4,), pad_id=0, keep_last=1)
    assert tokens.tolist() == [[100, 101, 102, 2], [7, 2, 0, 0]]
    assert cut.tolist() == [True, False]
    assert pad_tokens([list(range(10))], (4,), 0, keep_last=4)[0].tolist() == [[6, 7, 8, 9]]
    assert pad_tokens([list(range(10))], (4,), 0, keep_last=0)[0].tolist() == [[0, 1, 2, 3]]


def test_rows_without_tokens_are_all_padding():
    tokens, lengths, _ = pad_tokens([[], []], (4, 8), pad_id=9)
    assert tokens.tolist() == [[9] * 4] * 2 and lengths.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("rows", "buckets", "keep_last"), [([], (4,), None), ([[1]], (), None), ([[1]], (0, 4), None), ([[1]], (4,), 5)]
)
def test_what_makes_no_sense_is_refused(rows, buckets, keep_last):
    with pytest.raises(ValueError, match="wanted"):
        pad_tokens(rows, buckets, 0, keep_last)

"""Which captions are usable, and the tally of what is not."""

import json

import numpy as np
import pytest

from uae_jax.data.images import ImageError
from uae_jax.data.validity import (
    BAD_RECORD,
    CaptionError,
    RecordError,
    Tally,
    TooManyBadRecords,
    alternatives,
    usable_caption,
)

# The kinds of the reliability table, as sources give them.
REFUSED = {
    "missing": [None],
    "blank": ["", " \n\t", b"", "\u200b\u00a0", "\ufeff", "\x01\x02"],
    "type": [3, 1.5, float("nan"), True, ["a"], {"text": "a"}, np.array(["a"])],
    "utf8": [b"caf\xe9", b"\xff\xfe", b"\xed\xa0\x80", "caf\udce9", "\ud800 alone"],
    "nul": ["a\0b", b"a\0b", "\0"],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind in REFUSED for value in REFUSED[kind]])
def test_what_is_refused_and_why(kind, value):
    with pytest.raises(CaptionError) as error:
        usable_caption(value)
    assert error.value.kind == kind
    assert "\n" not in str(error.value)


def test_what_is_kept():
    long = "x" * 100_000
    for value, wanted in {
        "a cat": "a cat",
        " a cat.\r\n": "a cat.",
        "café".encode(): "café",
        "\ufeffa cat": "a cat",
        "猫": "猫",
        "🐈": "🐈",
        "two\nlines": "two\nlines",
        "<|image_pad|> <|im_end|>": "<|image_pad|> <|im_end|>",
        long: long,
        np.str_("a cat"): "a cat",
        np.bytes_(b"a cat"): "a cat",
    }.items():
        assert usable_caption(value) == wanted


def test_one_field_may_hold_several():
    assert alternatives("a") == ["a"]
    assert alternatives(b"a") == [b"a"]
    assert alternatives(None) == [None]  # which is then told to be missing
    assert alternatives(["a", None, 3]) == ["a", None, 3]
    assert alternatives(("a", "b")) == ("a", "b")
    assert alternatives(np.array(["a", "b"], object)) == ["a", "b"]
    assert alternatives(np.array("a")) == ["a"]
    assert alternatives([]) == []


def test_errors_of_images_captions_and_records_are_caught_as_one():
    for error in (ImageError("empty", "x"), CaptionError("blank", "x"), RecordError("json", "x")):
        with pytest.raises(BAD_RECORD) as caught:
            raise error
        assert caught.value.kind


def filled():
    tally = Tally(keep=2)
    for n in range(6):
        tally.use(f"good{n}", ["alpha", "16-bit"] if n == 1 else ["alpha"] if n in (2, 3) else [])
    for n in range(3):
        tally.skip(f"bad{n}", "corrupt")
    tally.skip("bad3", "blank")
    return tally


def test_counts_and_the_first_identities():
    tally = filled()
    assert (tally.seen, tally.used, tally.bad, tally.bad_fraction) == (10, 6, 4, 0.4)
    assert (tally.skipped["corrupt"].count, tally.skipped["corrupt"].first) == (3, ["bad0", "bad1"])
    assert (tally.converted["alpha"].count, tally.converted["alpha"].first) == (3, ["good1", "good2"])
    assert tally.converted["16-bit"].count == 1
    assert Tally().bad_fraction == 0


def test_a_record_that_is_bad_in_every_epoch_is_news_once():
    tally = Tally(keep=2)
    assert [tally.skip(id, "blank") for id in ("a", "a", "b", "c", "a")] == [True, False, True, False, False]
    assert (tally.skipped["blank"].count, tally.skipped["blank"].first) == (5, ["a", "b"])


def test_dots_stand_for_records_and_not_for_epochs():
    tally = Tally(keep=3)
    shown = []
    for id in "aabbc":
        tally.skip(id, "blank")
        shown.append(tally.named(tally.skipped["blank"], 2))
    assert shown == [["a"], ["a"], ["a", "b"], ["a", "b"], ["a", "b", "..."]]
    assert tally.named(tally.skipped["blank"], 3)[3:] == ["..."]  # five counted, three remembered: there may be others


def test_a_tally_survives_as_json():
    tally = filled()
    copy = Tally.from_json(json.loads(json.dumps(tally.to_json())))
    assert copy.to_json() == tally.to_json()
    copy.skip("bad4", "corrupt")  # and is no shared state
    assert tally.skipped["corrupt"].count == 3


def test_tallies_add_up():
    tally, other = filled(), Tally(keep=5)
    other.use("x")
    other.skip("y", "blank")
    other.skip("z", "nan")
    tally.merge(other)
    assert (tally.used, tally.bad, tally.seen) == (7, 6, 13)
    assert (tally.skipped["blank"].count, tally.skipped["blank"].first) == (2, ["bad3", "y"])
    assert tally.skipped["nan"].count == 1
    assert other.skipped["blank"].count == 1


def test_too_many_bad_records_end_a_run_with_a_table():
    tally = filled()
    tally.check(0.4, min_records=10)  # 4 of 10 is not more than 0.4
    tally.check(0.1)  # 10 records are too few to tell
    with pytest.raises(TooManyBadRecords, match=r"4 of 10 records are bad \(40\.0%\), wanted at most 39\.0%") as error:
        tally.check(0.39, min_records=10)
    lines = str(error.value).splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["skipped", "corrupt", "3", "bad0,", "bad1,", "..."],
        ["skipped", "blank", "1", "bad3"],
        ["converted", "alpha", "3", "good1,", "good2,", "..."],
        ["converted", "16-bit", "1", "good1"],
    ]

"""From a record to a sample: captions drawn, images decoded, what is bad told apart."""

import collections
import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from tests.data.streams import Broken, Numbers, png
from uae_jax.data.config import DataConfig, SourceConfig
from uae_jax.data.images import ImageLimits
from uae_jax.data.order import Order
from uae_jax.data.reading import Reader, draw_caption
from uae_jax.data.records import Record
from uae_jax.data.sources import open_source
from uae_jax.data.validity import CaptionError


class Records:
    """A source of given records."""

    name = "given"

    def __init__(self, *records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def id(self, index):
        return f"given:{index}"


def reader(source, seed=0, captions=(), weights=(), **config):
    config = DataConfig(**{"sources": (SourceConfig(captions=captions, caption_weights=weights),)} | config)
    return Reader(config, [source], Order([len(source)], [1.0], seed, shuffle=False), seed)


def drawn(stored, count=3000, **settings):
    rng = np.random.default_rng(0)
    return collections.Counter(draw_caption(stored, SourceConfig(**settings), rng) for _ in range(count))


def test_fields_are_drawn_by_weight_and_captions_of_a_field_alike():
    captions = {"short": "s", "long": ["l0", "l1"], "other": "o"}
    counts = drawn(captions, captions=("short", "long"), caption_weights=(1.0, 3.0))
    assert set(counts) == {("short", "s"), ("long", "l0"), ("long", "l1")}
    # Of 3000: 750, 1125, 1125, each with a deviation of at most 27; four of them are 108.
    assert abs(counts["short", "s"] - 750) < 108
    assert abs(counts["long", "l0"] - 1125) < 108 and abs(counts["long", "l1"] - 1125) < 108


def test_without_settings_all_fields_are_drawn_alike():
    counts = drawn({"a": "x", "b": "y", "c": "z"})
    assert len(counts) == 3 and all(abs(count - 1000) < 104 for count in counts.values())


def test_what_is_not_usable_leaves_its_share_to_the_rest():
    counts = drawn({"a": ["  ", "good", None], "b": 7, "c": "fine"})
    assert set(counts) == {("a", "good"), ("c", "fine")}


def test_a_field_of_weight_0_is_never_drawn():
    settings = SourceConfig(captions=("a", "b"), caption_weights=(1.0, 0.0))
    with pytest.raises(CaptionError) as caught:
        draw_caption({"a": "", "b": "good"}, settings, np.random.default_rng(0))
    assert caught.value.kind == "blank"


@pytest.mark.parametrize("captions", [{}, {"a": None}, {"a": []}])
def test_no_caption_at_all_is_missing(captions):
    with pytest.raises(CaptionError) as caught:
        draw_caption(captions, SourceConfig(), np.random.default_rng(0))
    assert caught.value.kind == "missing"


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (-1.0, 2.0)])
def test_weights_that_do_not_go_with_the_fields_are_refused(weights):
    with pytest.raises(ValueError, match="caption_weights"):
        reader(Numbers(3), captions=("a", "b"), weights=weights)


def test_an_image_turned_by_its_exif_goes_into_the_standing_bucket():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees: 96 x 48 as stored is 48 x 96 as seen
    buffer = io.BytesIO()
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:, :48] = 255  # the left half as stored is the upper one as seen
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    read = reader(Records(Record("turned", buffer.getvalue(), {"text": "x"})), aspects=(1.0, 2.0, 0.5))(0)
    assert read.bucket == 2 and read.sample.image.shape == (96, 48, 3)
    assert (read.sample.image[:40] == 255).all() and (read.sample.image[56:] == 0).all()


def test_an_array_of_the_right_shape_is_taken_as_it_is_and_checked_all_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    as_array, as_file = (reader(Records(Record("r", image, {"text": "x"})))(0) for image in (pixels, png(pixels)))
    np.testing.assert_array_equal(as_array.sample.image, pixels)
    np.testing.assert_array_equal(as_file.sample.image, pixels)
    few = reader(Records(Record("r", pixels, {"text": "x"})), limits=ImageLimits(min_side=65))(0)
    assert few.kind == "small"


def test_a_caption_is_made_only_when_it_is_drawn():
    class Wordings(Sequence):
        made = 0

        def __len__(self):
            return 5

        def __getitem__(self, index):
            self.made += 1
            return f"wording {range(5)[index]}"

    values = Wordings()
    draw_caption({"text": values}, SourceConfig(), np.random.default_rng(0))
    assert values.made == 1


def test_conversions_are_told():
    grey16 = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    buffer = io.BytesIO()
    grey16.save(buffer, "PNG")
    read = reader(Records(Record("deep", buffer.getvalue(), {"text": "x"})))(0)
    assert read.sample is not None and read.conversions == ("16-bit",)


def test_a_line_that_cannot_be_read_goes_by_its_number_in_the_file(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"caption": "x"}\n\n{broken\n')
    source = open_source(SourceConfig(str(tmp_path / "t.jsonl"), image=""))
    read = reader(source, resolution=0)
    assert [read(position).id for position in (0, 1)] == ["t.jsonl:1", "t.jsonl:3"]


def test_bad_records_are_told_apart():
    good = png(np.zeros((64, 64, 3), np.uint8))
    cases = {
        "unreadable": Record("a", b"<html>", {"text": "x"}),
        "empty": Record("b", b"", {"text": "x"}),
        "missing": Record("c", None, {"text": "x"}),
        "nul": Record("d", good, {"text": "x\0y"}),
        "small": Record("e", np.zeros((64, 4, 3), np.uint8), {"text": "x"}),
    }
    read = reader(Records(*cases.values()))
    for i, (kind, record) in enumerate(cases.items()):
        got = read(i)
        assert (got.kind, got.id, got.sample) == (kind, record.id, None) and got.message


def test_without_captions_and_without_images_less_is_asked_of_a_record():
    record = Record("bare", b"<html>", {}, {"latents": np.ones(3)})
    read = reader(Records(record), with_captions=False, resolution=0)(0)
    assert read.sample.image is None and read.sample.caption is None
    np.testing.assert_array_equal(read.sample.arrays["latents"], np.ones(3))


def test_what_comes_out_follows_seed_and_position_only():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 200, 3), np.uint8)
    source = Records(Record("wide", pixels, {"text": [f"wording {i}" for i in range(50)]}))
    settings = {"crop": "random", "flip": 0.5}
    forward, backward = reader(source, **settings), reader(source, **settings)
    reads = [forward(i) for i in range(8)]
    for i in reversed(range(8)):
        again = backward(i)
        assert again.sample.caption == reads[i].sample.caption
        np.testing.assert_array_equal(again.sample.image, reads[i].sample.image)
    assert len({read.sample.caption for read in reads}) > 1  # another wording at each position, of one record
    assert reads[0].sample.caption != reader(source, seed=1, **settings)(0).sample.caption


def test_flips_happen_as_often_as_said():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32] = 255
    read = reader(Records(Record("half", pixels, {"text": "x"})), flip=0.25)
    flipped = sum(int(read(i).sample.image[0, 0, 0] == 0) for i in range(400))
    assert abs(flipped - 100) < 35  # four deviations of sqrt(400 * 0.25 * 0.75) = 8.7


def test_a_fault_that_is_not_the_records_is_raised_and_says_where():
    read = reader(Broken(10), resolution=0)
    assert read(4).sample.caption == "4"
    with pytest.raises(OSError, match="the disk is gone") as caught:
        read(5)
    assert caught.value.__notes__ == ["while reading record 5 of numbers"]

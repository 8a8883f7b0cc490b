"""What inspecting finds, among it every bad record of the reliability table; and the page to look at."""

import base64
import collections
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.data.bad_images import TABLE, encoded, png
from uae_jax.data import contact_sheet
from uae_jax.data.config import DataConfig, SourceConfig
from uae_jax.data.inspect import aspect_histogram, histogram, inspect, spread, summary, to_text
from uae_jax.data.loader import Loader
from uae_jax.data.records import Record
from uae_jax.data.sources import open_source

# Kind of caption -> (kind of refusal or None, as bytes in a .txt, as a value in a JSON line).
CAPTIONS = {
    "missing": ("missing", None, b"null"),
    "blank": ("blank", b" \n", b'" \\n"'),
    "non-string": ("type", None, b"17"),
    "bad UTF-8": ("utf8", b"caf\xe9", b'"caf\xe9"'),
    "NUL": ("nul", b"a\0b", b'"a\\u0000b"'),
    "100k characters": (None, b"word " * 20_000, b'"' + b"word " * 20_000 + b'"'),
    "special token": (None, b"a <|image_pad|> b", b'"a <|image_pad|> b"'),
}
RECORDS, EACH = 1000, 10


def thousand():
    """(kind or None) of each of the 1000 records: 10 of every bad image and caption, scattered."""
    kinds = [("image", name) for name in TABLE] + [("caption", name) for name in CAPTIONS]
    odd = [kind for kind in kinds for _ in range(EACH)]
    result = [None] * RECORDS
    for place, kind in zip(np.random.default_rng(0).permutation(RECORDS)[: len(odd)], odd, strict=True):
        result[place] = kind
    return result


@pytest.fixture(scope="module")
def good():
    return png()


def expected(kinds):
    """What becomes of them: kind -> number, for skipped and converted; and the places that are left."""
    skipped, converted, left = collections.Counter(), collections.Counter(), []
    for place, kind in enumerate(kinds):
        refusal, conversion = None, None
        if kind is not None:
            what, name = kind
            refusal = TABLE[name][0] if what == "image" else CAPTIONS[name][0]
            conversion = TABLE[name][1] if what == "image" else None
        if refusal:
            skipped[f"{kind[0]} {refusal}"] += 1
            continue
        left.append(place)
        if conversion:
            converted[conversion] += 1
    return skipped, converted, left


def write_folder(folder, kinds, good):
    for place, kind in enumerate(kinds):
        image = TABLE[kind[1]][2] if kind and kind[0] == "image" else good
        (folder / f"{place:04d}.png").write_bytes(image)
        text = CAPTIONS[kind[1]][1] if kind and kind[0] == "caption" else b"record %d" % place
        if text is not None:
            (folder / f"{place:04d}.txt").write_bytes(text)


def write_table(folder, kinds, good):
    lines = []
    for place, kind in enumerate(kinds):
        image = TABLE[kind[1]][2] if kind and kind[0] == "image" else good
        (folder / f"{place:04d}.png").write_bytes(image)
        value = CAPTIONS[kind[1]][2] if kind and kind[0] == "caption" else b'"record %d"' % place
        lines.append(b'{"image": "%04d.png", "caption": %s}' % (place, value))
    (folder / "set.jsonl").write_bytes(b"\n".join(lines))


def counts(tally):
    return tuple({kind: c.count for kind, c in part.items()} for part in (tally.skipped, tally.converted))


@pytest.mark.parametrize("form", ["folder", "table"])
def test_22_kinds_of_bad_records_among_a_thousand(tmp_path, good, form):
    kinds = thousand()
    if form == "folder":  # where a caption cannot be a number: it is missing instead
        kinds = [("caption", "missing") if kind == ("caption", "non-string") else kind for kind in kinds]
        write_folder(tmp_path, kinds, good)
    else:
        write_table(tmp_path, kinds, good)
    path = str(tmp_path if form == "folder" else tmp_path / "set.jsonl")
    skipped, converted, left = expected(kinds)
    result = inspect(open_source(SourceConfig(path=path)), cards=len(left))
    # 11 kinds of images and 5 of captions are skipped, 4 converted, 2 kept as they are.
    assert (result.tally.seen, result.tally.used, result.tally.bad) == (1000, 840, 160)
    assert counts(result.tally) == (skipped, converted)
    assert sum(converted.values()) == 40

    # The loader, too: nobody falls, and the order of the others is that of the source.
    config = DataConfig(sources=(SourceConfig(path=path),), resolution=32, shuffle=False, max_bad_fraction=0.5)
    with Loader(config, batch_size=1, seed=0, epochs=1) as loader:
        samples = [sample for batch in loader for sample in batch.samples]
        tally = loader.tally
    places = {str(tmp_path / f"{p:04d}.png"): p for p in left} | {f"set.jsonl:{p + 1}": p for p in left}
    assert [places[sample.id] for sample in samples] == left
    merged = collections.Counter()
    for kind, count in skipped.items():
        merged[kind.split()[1]] += count
    assert counts(tally) == (merged, converted)
    for sample, place in zip(samples, left, strict=True):
        if kinds[place] is None:
            assert sample.caption == f"record {place}"
        elif kinds[place][0] == "caption":  # kept whole
            assert sample.caption == CAPTIONS[kinds[place][1]][1].decode().strip()


class Listed:
    """Records from a list; what is an exception is raised."""

    name = "listed"

    def __init__(self, *records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def id(self, index):
        return f"listed:{index}"


def picture(width, height):
    return np.full((height, width, 3), 90, np.uint8)


def test_the_first_of_each_kind_says_what_is_wrong_and_lines_count_from_1(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"image": "a.png", "caption": "x"}\n{broken\n{"image": "b.png", "caption": "y"}\n'
    )
    result = inspect(open_source(SourceConfig(str(tmp_path / "t.jsonl"))))
    assert result.reasons["image missing"] == f"t.jsonl:1: {tmp_path}/a.png: no such file"
    assert result.reasons["record json"].startswith("t.jsonl:2: not JSON")
    assert result.tally.skipped["record json"].first == ["t.jsonl:2"]
    assert result.tally.skipped["image missing"].first == ["t.jsonl:1", "t.jsonl:3"]
    assert f"image missing: t.jsonl:1: {tmp_path}/a.png: no such file" in to_text(result)


def test_sizes_and_lengths():
    source = Listed(
        Record("a", picture(40, 20), {"short": "one two", "long": ["one two three", None]}),
        Record("b", picture(160, 90), {"short": "one", "long": 3}),
        Record("c", picture(30, 30), {"short": None, "long": None}),
    )
    result = inspect(source, count_tokens=len)
    assert result.sizes == [(40, 20), (160, 90), (30, 30)]
    short, long = result.fields["short"], result.fields["long"]
    assert (short.words, short.tokens, short.unusable) == ([2, 1], [7, 3], 1)
    assert (long.words, long.tokens, long.unusable) == ([3], [13], 3)
    assert counts(result.tally) == ({"caption missing": 1}, {})
    facts = json.loads(json.dumps(result.to_json()))
    # Areas 800, 14400, 900: sides 28.28, 120, 30.
    assert facts["images"]["side"] == pytest.approx({"min": 28.284, "median": 30, "mean": 59.428, "max": 120}, abs=1e-3)
    assert facts["images"]["sides"] == {"< 64": 2, "64 - 127": 1}
    assert facts["images"]["aspects"] == {"1:1": 1, "4:3": 0, "3:2": 0, "2:1": 2}  # 16:9 is nearer to 2:1 than to 3:2
    assert facts["captions"]["short"]["words"]["histogram"] == {"< 5": 2}


def test_a_source_without_images_or_captions():
    assert inspect(Listed(Record("a", None, {"c": "x"})), images=False).tally.used == 1
    result = inspect(Listed(Record("a", None, {"c": "x"}), Record("b", picture(20, 20))))
    assert counts(result.tally) == ({"image missing": 1, "caption missing": 1}, {})
    assert contact_sheet.to_html(result) and to_text(result)  # with nothing to draw


def test_records_to_look_at_are_spread_evenly():
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 10) == [0, 1, 2]
    assert spread(0, 5) == []
    source = Listed(*(Record(str(n), picture(20, 20), {"c": "x"}) for n in range(100)))
    result = inspect(source, limit=20, cards=4)
    assert result.tally.seen == 20
    assert [card.id for card in result.cards] == ["0", "25", "50", "75"]


def test_histograms():
    assert histogram([4, 5, 9, 10, 3000], (5, 10, 20)) == {"< 5": 1, "5 - 9": 2, "10 - 19": 1, ">= 20": 1}
    assert histogram([7], (5, 10, 20)) == {"5 - 9": 1}
    assert histogram([], (5, 10)) == {}
    assert aspect_histogram([(1000, 100), (100, 100)]) == {"1:1": 1, "4:3": 0, "3:2": 0, "2:1": 0, "3:1": 1}
    assert summary([]) is None


def test_text_for_the_terminal():
    result = inspect(Listed(Record("a", picture(40, 20), {"c": "one two"}), Record("b", b"", {"c": "x"})))
    lines = to_text(result).splitlines()
    assert lines[:2] == ["listed", "records 2, inspected 2, used 1, skipped 1 (50.00%)"]
    assert "caption 'c': 1" in lines
    assert any(re.fullmatch(r"skipped +image empty +1 +b", line) for line in lines)


class Page(html.parser.HTMLParser):
    """Collects tags and sources of images, and checks that what is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self._open = collections.Counter(), [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        if tag == "img":
            self.sources.append(dict(attributes)["src"])
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag


def test_the_page_holds_everything_and_nothing_runs():
    evil = '<script>alert("x")</script> & \udce9'
    photo = np.random.default_rng(0).integers(0, 256, (300, 600, 3), np.uint8)
    source = Listed(
        Record(evil, picture(64, 48), {evil: evil.replace("\udce9", "")}),
        Record("photo", photo, {"c": ["first", "second"]}),
        Record('"><img src=x>', b"", {"c": "x"}),
    )
    text = contact_sheet.to_html(inspect(source))
    text.encode("utf-8")  # half a surrogate pair would not pass
    page = Page(text)
    assert page.tags["script"] == 0
    assert len(page.sources) == 2  # and not the one in the name of a record
    assert "&lt;script&gt;" in text and "(1 of 2)" in text and "image empty" in text
    small, large = (Image.open(io.BytesIO(base64.b64decode(s.split(",")[1]))) for s in page.sources)
    assert (small.size, small.format) == ((64, 48), "PNG")
    assert np.array_equal(small, picture(64, 48))
    assert (large.size, large.format) == ((256, 128), "JPEG")
    assert not re.search(r'(src|href)="(?!data:)', text)  # one file, no network


def test_thumbnails_do_not_grow():
    # 60 noisy photographs of 1 megapixel: what is kept of each is at most 256 x 256.
    photo = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)), "JPEG")
    result = inspect(Listed(*(Record(str(n), photo, {"c": "x"}) for n in range(5))))
    assert all(card.thumbnail.size == (256, 256) and card.size == (1000, 1000) for card in result.cards)
    assert len(contact_sheet.to_html(result)) < 5 * 60_000

"""JSON lines, CSV and Parquet tables."""

import csv
import json

import pytest

from tests.data.sources.checks import check_contract, picture, png, shown
from uae_jax.data.config import SourceConfig
from uae_jax.data.images import ImageError
from uae_jax.data.sources import SourceError, columnar, open_source
from uae_jax.data.validity import CaptionError, RecordError, usable_caption

COUNT = 5


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(COUNT):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(number))
    return tmp_path


def rows():
    return [
        {
            "image": f"images/{n}.png",
            "url": "http://x",
            "caption": f"row {n}",
            "long_caption": f'a "{n}",\nin two lines é',
        }
        for n in range(COUNT)
    ]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


WRITERS = {".jsonl": write_jsonl, ".csv": write_csv, ".tsv": write_csv, ".parquet": write_parquet}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_row_with_its_image_and_captions(folder, suffix):
    path = folder / f"table{suffix}"
    WRITERS[suffix](path, rows())
    source = open_source(SourceConfig(path=str(path)))
    records = [source[index] for index in range(len(source))]
    assert [shown(record) for record in records] == list(range(COUNT))
    # Columns that are called captions; "url" is none.
    assert [dict(record.captions) for record in records] == [
        {"caption": row["caption"], "long_caption": row["long_caption"]} for row in rows()
    ]
    check_contract(source)


@pytest.mark.parametrize("suffix", WRITERS)
def test_columns_by_name(folder, suffix):
    path = folder / f"table{suffix}"
    WRITERS[suffix](path, [{"picture": row["image"], "url": row["url"], "note": row["caption"]} for row in rows()])
    source = open_source(SourceConfig(path=str(path), image="picture", captions=("url",)))
    assert shown(source[3]) == 3
    assert dict(source[3].captions) == {"url": "http://x"}
    without = open_source(SourceConfig(path=str(path), image="", captions=("note",)))
    assert without[3].image is None
    with pytest.raises(
        SourceError, match="no image column 'pictur', the nearest is 'picture'; all: picture, url, note"
    ):
        open_source(SourceConfig(path=str(path), image="pictur"))
    with pytest.raises(SourceError, match="no column 'noet', the nearest is 'note'; all: picture, url, note"):
        open_source(SourceConfig(path=str(path), image="picture", captions=("noet",)))


def test_ids_are_lines_of_the_file(folder):
    # A value over two lines: the rows of the CSV begin at lines 2, 4, 6, ...
    write_csv(folder / "t.csv", rows())
    assert open_source(SourceConfig(path=str(folder / "t.csv")))[2].id == "t.csv:6"
    (folder / "t.jsonl").write_text('\n{"image": "a"}\n\n  \n{"image": "b"}')
    source = open_source(SourceConfig(path=str(folder / "t.jsonl")))
    assert [source[0].id, source[1].id] == ["t.jsonl:2", "t.jsonl:5"]
    write_parquet(folder / "t.parquet", rows())
    assert open_source(SourceConfig(path=str(folder / "t.parquet")))[3].id == "t.parquet:3"


def test_a_list_of_captions_stays_a_list(folder):
    for name, write in (("t.jsonl", write_jsonl), ("t.parquet", write_parquet)):
        write(folder / name, [{"image": "images/0.png", "captions": ["one", "two"]}])
        assert open_source(SourceConfig(path=str(folder / name)))[0].captions["captions"] == ["one", "two"]


def test_lines_that_are_no_rows_are_bad_records(folder):
    good = json.dumps({"image": "images/1.png", "caption": "x"}).encode()
    lines = [good, b'{"image": "images/0.png", "cap', b"[1, 2]", b"[" * 100_000, good]
    (folder / "t.jsonl").write_bytes(b"\n".join(lines))
    source = open_source(SourceConfig(path=str(folder / "t.jsonl")))
    assert len(source) == 5
    assert (shown(source[0]), shown(source[4])) == (1, 1)
    for index in (1, 2, 3):
        with pytest.raises(RecordError, match=f"t.jsonl:{index + 1}: ") as error:
            source[index]
        assert error.value.kind == "json"
    (folder / "t.csv").write_text("image,caption\nimages/1.png,x\nimages/1.png\n")
    with pytest.raises(RecordError, match=r"t.csv:3: 1 values, wanted 2") as error:
        open_source(SourceConfig(path=str(folder / "t.csv")))[1]
    assert error.value.kind == "row"


def test_a_row_may_lack_a_caption_or_an_image(folder):
    write_jsonl(folder / "t.jsonl", [{"image": "images/0.png", "caption": "x"}, {"image": "images/0.png"}, {"a": 1}])
    source = open_source(SourceConfig(path=str(folder / "t.jsonl")))
    assert dict(source[1].captions) == {"caption": None}
    assert source[2].image is None


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
def test_bytes_that_are_no_utf8_spoil_their_own_caption_only(folder, name):
    if name == "t.jsonl":
        data = b'{"image": "images/0.png", "caption": "caf\xe9"}\n{"image": "images/1.png", "caption": "caf\xc3\xa9"}\n'
    else:
        data = b"image,caption\nimages/0.png,caf\xe9\nimages/1.png,caf\xc3\xa9\n"
    (folder / name).write_bytes(data)
    source = open_source(SourceConfig(path=str(folder / name)))
    assert usable_caption(source[1].captions["caption"]) == "café"
    with pytest.raises(CaptionError) as error:
        usable_caption(source[0].captions["caption"])
    assert error.value.kind == "utf8"
    assert shown(source[0]) == 0


def test_paths_may_not_leave_the_tables_folder_unless_absolute(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "7.png"
    elsewhere.write_bytes(png(7))
    bad = ["../secret.png", "images/../../secret.png", "..", "images\\..\\..\\x.png"]
    write_jsonl(folder / "t.jsonl", [{"image": name} for name in [*bad, str(elsewhere)]])
    source = open_source(SourceConfig(path=str(folder / "t.jsonl")))
    for index in range(len(bad)):
        with pytest.raises(ImageError, match="leaves the folder") as error:
            source[index]
        assert error.value.kind == "outside"
    assert shown(source[4]) == 7


def test_a_path_that_is_no_file_is_a_bad_image(folder):
    write_jsonl(folder / "t.jsonl", [{"image": name} for name in ("images", "none.png", "/dev/zero", "a\0b", "", 3)])
    source = open_source(SourceConfig(path=str(folder / "t.jsonl")))
    for index in range(6):
        with pytest.raises(ImageError) as error:
            shown(source[index])
        assert error.value.kind == ("type" if index == 5 else "missing")


def test_images_inside_a_parquet_file(folder):
    images = [{"bytes": png(n), "path": None} for n in range(COUNT)]
    write_parquet(folder / "struct.parquet", [{"image": image, "text": "x"} for image in images])
    write_parquet(folder / "plain.parquet", [{"image": png(n), "text": "x", "other": "y"} for n in range(COUNT)])
    for name in ("struct", "plain"):
        source = open_source(SourceConfig(path=str(folder / f"{name}.parquet")))
        assert [shown(source[n]) for n in range(COUNT)] == list(range(COUNT))
        assert dict(source[0].captions) == {"text": "x"}
    check_contract(source)


def test_row_groups_are_dropped_when_they_are_too_many(folder, monkeypatch):
    write_parquet(folder / "t.parquet", rows())
    monkeypatch.setattr(columnar, "CACHE_BYTES", 1)
    source = open_source(SourceConfig(path=str(folder / "t.parquet")))
    assert [source[n].captions["caption"] for n in (0, 4, 1, 2, 4)] == [f"row {n}" for n in (0, 4, 1, 2, 4)]
    assert len(source._rows._cache) == 1  # and not none: the last one is always kept


def test_a_broken_parquet_file_is_named(folder):
    write_parquet(folder / "t.parquet", rows())
    whole = (folder / "t.parquet").read_bytes()
    opened = open_source(SourceConfig(path=str(folder / "t.parquet")))
    (folder / "t.parquet").write_bytes(whole[:-9])
    with pytest.raises(SourceError, match=r"t\.parquet: broken Parquet file \(.*\); fetch it again"):
        open_source(SourceConfig(path=str(folder / "t.parquet")))
    (folder / "t.parquet").write_bytes(whole[:4] + bytes(40) + whole[44:])  # the footer is good
    with pytest.raises(SourceError, match=r"t\.parquet: broken Parquet file"):
        opened[0]


def test_tables_that_are_none(folder):
    cases = {
        "a.jsonl": (b"", "no JSON object"),
        "b.jsonl": (b"\x89PNG\r\n", "no JSON object"),
        "c.csv": (b"", "empty"),
        "d.csv": (b"image,caption\n", "no row in it"),
        "e.csv": (b'image,caption\nx,"' + b"y" * 200_000, "field larger than"),
        "f.jsonl": (b'{"picture": 1}', "no image column 'image', the nearest is 'picture'"),
    }
    for name, (data, message) in cases.items():
        (folder / name).write_bytes(data)
        with pytest.raises(SourceError, match=message):
            open_source(SourceConfig(path=str(folder / name)))


def test_the_pixels_of_a_picture_tell_its_number():
    assert picture(3)[0, 0].tolist() == [3, 6, 100]

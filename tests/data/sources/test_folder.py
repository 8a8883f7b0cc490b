"""A folder of images with texts beside them."""

import errno
import os

import pytest

from tests.data.sources.checks import check_contract, png, shown
from uae_jax.data.config import SourceConfig
from uae_jax.data.sources import SourceError, open_source
from uae_jax.data.validity import RecordError


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("b.png", "a.PNG", "deep/er/c.jpg", "v1.2.png")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        path.with_suffix(".txt").write_text(f"picture {number}\n", encoding="utf-8")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.png").write_bytes(png(9))
    (tmp_path / "._b.png").write_bytes(b"")
    (tmp_path / "notes.md").write_text("no image")
    return tmp_path


def test_images_in_the_order_of_their_paths_with_their_texts(folder):
    source = open_source(SourceConfig(path=str(folder)))
    records = [source[index] for index in range(len(source))]
    assert [record.id for record in records] == [
        str(folder / name) for name in ("a.PNG", "b.png", "deep/er/c.jpg", "v1.2.png")
    ]
    assert [shown(record) for record in records] == [1, 0, 2, 3]
    assert [dict(record.captions) for record in records] == [{"caption": b"picture %d\n" % n} for n in (1, 0, 2, 3)]
    check_contract(source)


def test_a_missing_text_is_a_missing_caption(folder):
    (folder / "b.txt").unlink()
    source = open_source(SourceConfig(path=str(folder), captions=("caption",)))
    assert dict(source[1].captions) == {"caption": None}


def test_a_text_without_end_is_refused_without_being_read(folder, monkeypatch):
    monkeypatch.setattr("uae_jax.data.sources.base.MAX_TEXT_BYTES", 5)
    with pytest.raises(RecordError, match=r"a\.txt: more than 5 bytes") as error:
        open_source(SourceConfig(path=str(folder)))[0]
    assert error.value.kind == "large"


def test_a_link_to_a_folder_above_does_not_go_round_forever(folder):
    (folder / "deep" / "up").symlink_to(folder)
    assert len(open_source(SourceConfig(path=str(folder)))) == 4


def test_what_is_not_there_is_told(tmp_path, folder):
    (tmp_path / "none").mkdir()
    for path, message in ((tmp_path / "none", "no image in it"), (tmp_path / "nowhere", "nothing there")):
        with pytest.raises(SourceError, match=message) as error:
            open_source(SourceConfig(path=str(path)))
        assert str(path) in str(error.value)
    with pytest.raises(SourceError, match="nowhere: no such folder"):
        open_source(SourceConfig(path=str(tmp_path / "nowhere"), kind="folder"))
    with pytest.raises(SourceError, match="no caption field 'captoin', the nearest is 'caption'"):
        open_source(SourceConfig(path=str(folder), captions=("captoin",)))


def test_a_folder_below_that_cannot_be_read_is_no_empty_one(folder, monkeypatch):
    usual = os.scandir

    def scandir(path):
        if str(path).endswith("er"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return usual(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read whatever the mode says
    with pytest.raises(SourceError, match="deep/er: Permission denied; make the folder readable"):
        open_source(SourceConfig(path=str(folder)))


def test_files_of_no_kind_and_kinds_that_there_are_not(tmp_path):
    (tmp_path / "x.doc").write_text("")
    with pytest.raises(SourceError, match=r"no kind of source has files ending in '\.doc'"):
        open_source(SourceConfig(path=str(tmp_path / "x.doc")))
    with pytest.raises(SourceError, match="kind is 'pickle', wanted one of auto, folder"):
        open_source(SourceConfig(path=str(tmp_path), kind="pickle"))


def test_patterns_and_folders_in_the_place_of_a_table_are_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"image": "a.png"}\n')
    with pytest.raises(SourceError, match=r"a\*\.jsonl: only \.tar shards go by a pattern; give each file as a source"):
        open_source(SourceConfig(path=str(tmp_path / "a*.jsonl")))
    with pytest.raises(SourceError, match=r'a folder, which kind "table" is not; wanted a file: \.jsonl'):
        open_source(SourceConfig(path=str(tmp_path), kind="table"))

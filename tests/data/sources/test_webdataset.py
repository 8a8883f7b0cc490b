"""Tar shards: what is in them, patterns of them, their index, and what must not be in them."""

import io
import json
import logging
import os
import tarfile

import pytest

from tests.data.sources.checks import check_contract, png, shown
from uae_jax.data.config import SourceConfig
from uae_jax.data.images import ImageError
from uae_jax.data.sources import SourceError, open_source, tar_index
from uae_jax.data.sources.webdataset import expand_braces
from uae_jax.data.validity import RecordError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def write(path, members):
    """Writes a tar file of (name, bytes), or of ready-made `TarInfo`s."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))


def sample(key, number):
    text = json.dumps({"url": "http://x", "long_caption": f"long {number}"}).encode()
    return [(f"{key}.jpg", png(number)), (f"{key}.txt", b"text %d" % number), (f"{key}.json", text)]


@pytest.fixture
def shards(tmp_path):
    write(tmp_path / "s-00.tar", [m for n in range(3) for m in sample(f"{n:04d}", n)])
    write(tmp_path / "s-01.tar", [m for n in (3, 4) for m in sample(f"{n:04d}", n)])
    return tmp_path


def opened(path, **settings):
    return open_source(SourceConfig(path=str(path), **settings))


def test_samples_of_all_shards_in_order(shards):
    source = opened(shards)
    assert [shown(source[n]) for n in range(len(source))] == [0, 1, 2, 3, 4]
    assert source[3].id == "s-01.tar:0003"
    assert dict(source[3].captions) == {"caption": b"text 3", "long_caption": "long 3"}  # and no url
    check_contract(source)


@pytest.mark.parametrize("pattern", ["s-0*.tar", "s-{00..01}.tar", "s-{00,01}.tar", "{s,s}-01.tar"])
def test_patterns(shards, pattern):
    source = opened(shards / pattern)
    wanted = [3, 4, 3, 4] if pattern.startswith("{") else [0, 1, 2, 3, 4]
    assert [shown(source[n]) for n in range(len(source))] == wanted


def test_braces():
    assert expand_braces("a{8..10}b{x,}") == ["a8bx", "a8b", "a9bx", "a9b", "a10bx", "a10b"]
    assert expand_braces("{000..002}") == ["000", "001", "002"]
    assert expand_braces("plain") == ["plain"]


def test_caption_fields_by_name(shards):
    assert dict(opened(shards, captions=("url",))[0].captions) == {"url": "http://x"}
    assert dict(opened(shards, captions=("caption",))[0].captions) == {"caption": b"text 0"}
    with pytest.raises(SourceError, match="no caption field 'long', the nearest is 'long_caption'"):
        opened(shards, captions=("long",))


def test_members_are_grouped_by_name_up_to_the_first_dot(tmp_path):
    members = [("a/x.png", png(1)), ("b/x.png", png(2)), ("a/x.short.txt", b"s"), ("a/x.long.txt", b"l")]
    write(tmp_path / "t.tar", members)
    source = opened(tmp_path / "t.tar")
    assert [source[n].id for n in (0, 1)] == ["t.tar:a/x", "t.tar:b/x"]
    assert dict(source[0].captions) == {"short": b"s", "long": b"l"}
    assert dict(source[1].captions) == {}


def test_a_sample_without_an_image_or_with_broken_json(tmp_path):
    write(tmp_path / "t.tar", [("a.txt", b"x"), ("b.png", png(1)), ("b.json", b"{oops"), ("c.json", b"[1]")])
    source = opened(tmp_path / "t.tar")
    assert source[0].image is None
    for index in (1, 2):
        with pytest.raises(RecordError) as error:
            source[index]
        assert error.value.kind == "json"


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_links_and_paths_out_of_the_folder_are_refused(tmp_path):
    bad = [link("a.txt", "/etc/passwd"), ("../b.png", png(1)), ("/c.png", png(1)), ("d/../../e.png", png(1))]
    fifo = tarfile.TarInfo("f.png")
    fifo.type = tarfile.FIFOTYPE
    write(tmp_path / "t.tar", [*bad, fifo, ("good.png", png(5))])
    source = opened(tmp_path / "t.tar")
    assert len(source) == 6
    for index in range(5):
        with pytest.raises(RecordError) as error:
            source[index]
        assert error.value.kind == "unsafe"
    assert shown(source[5]) == 5


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 40
    write(tmp_path / "t.tar", [*sample("good", 3)])
    data = (tmp_path / "t.tar").read_bytes()
    end = data.rindex(b"ustar") // 512 * 512 + 1024  # behind the last member, whose data fits one block
    (tmp_path / "t.tar").write_bytes(data[:end] + info.tobuf(tarfile.GNU_FORMAT))
    source = opened(tmp_path / "t.tar")
    assert shown(source[0]) == 3
    with pytest.raises(RecordError, match="cut off"):
        source[1]


def test_members_that_are_too_large_are_not_read(shards, monkeypatch):
    monkeypatch.setattr("uae_jax.data.sources.webdataset.MAX_IMAGE_BYTES", 10)
    with pytest.raises(ImageError, match="wanted at most 10") as error:
        opened(shards)[0]
    assert error.value.kind == "large"
    monkeypatch.setattr("uae_jax.data.sources.webdataset.MAX_TEXT_BYTES", 3)
    with pytest.raises(RecordError, match="wanted at most 3"):
        opened(shards)[0]


def test_a_shard_that_ends_too_soon_gives_what_came_before(shards, caplog):
    path = shards / "s-00.tar"
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"0002.jpg") + 512 + 40])  # in the middle of the third image
    with caplog.at_level(logging.WARNING):
        source = opened(path)
    assert [shown(source[n]) for n in (0, 1)] == [0, 1]
    for index in range(2, len(source)):
        with pytest.raises(RecordError):
            source[index]
    assert "s-00.tar" in caplog.text


def test_what_is_no_tar_file_is_told(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(SourceError, match="wanted a tar file that is not compressed"):
        opened(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.add(__file__, "x.txt")
    with pytest.raises(SourceError, match="not compressed"):
        opened(tmp_path / "b.tar")
    with pytest.raises(SourceError, match=r"c-01\.tar: no such shard"):
        opened(tmp_path / "c-{01..03}.tar")
    with pytest.raises(SourceError, match="no sample in its 1 shards"):
        write(tmp_path / "d.tar", [])
        opened(tmp_path / "d.tar")


# -- the index


def scans(monkeypatch):
    """Counts how often shards are gone through."""
    seen, scan = [], tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda path: seen.append(os.path.basename(path)) or scan(path))
    return seen


def test_the_index_is_made_once_and_lies_beside_the_shard(shards, monkeypatch):
    seen = scans(monkeypatch)
    first = opened(shards)
    again = opened(shards)
    assert seen == ["s-00.tar", "s-01.tar"]
    assert (shards / ".s-00.tar.index.npz").exists()
    assert [again[n].id for n in range(5)] == [first[n].id for n in range(5)]
    assert not [file for file in shards.iterdir() if file.name.endswith(".part")]


def test_a_shard_that_changed_is_gone_through_again(shards, monkeypatch):
    opened(shards)
    write(shards / "s-01.tar", sample("new", 9))
    seen = scans(monkeypatch)
    source = opened(shards)
    assert seen == ["s-01.tar"]
    assert source[3].id == "s-01.tar:new"


@pytest.mark.parametrize("damage", ["empty", "truncated", "other", "pickle"])
def test_a_broken_index_is_made_anew(shards, monkeypatch, damage):
    import numpy as np

    opened(shards)
    place = shards / ".s-00.tar.index.npz"
    data = place.read_bytes()
    if damage == "pickle":
        np.savez(place, stamp=np.array([object()], object), allow_pickle=True)
    else:
        place.write_bytes({"empty": b"", "truncated": data[:-100], "other": b"x" * 500}[damage])
    seen = scans(monkeypatch)
    assert shown(opened(shards)[0]) == 0
    assert seen == ["s-00.tar"]


def test_where_shards_cannot_be_written_beside_the_cache_serves(shards, cache, monkeypatch):
    write_index = tar_index._write

    def refuse(place, *rest):
        if "cache" not in str(place):
            raise PermissionError("read-only")
        write_index(place, *rest)

    monkeypatch.setattr(tar_index, "_write", refuse)
    opened(shards)
    assert not (shards / ".s-00.tar.index.npz").exists()
    assert len(list((cache / "uae_jax" / "webdataset").iterdir())) == 2
    seen = scans(monkeypatch)
    opened(shards)
    assert seen == []

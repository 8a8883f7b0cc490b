"""Our own ArrayRecord files."""

import struct

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from tests.data.sources.checks import check_contract, picture, png, shown
from uae_jax.data.config import SourceConfig
from uae_jax.data.records import Record
from uae_jax.data.sources import SourceError, open_source
from uae_jax.data.sources.arrayrecord import MAGIC, decode, encode, write_array_record
from uae_jax.data.validity import CaptionError, RecordError, usable_caption


def records(count=4):
    return [Record(f"r{n}", png(n), {"short": f"s{n}", "long": ["a", f"b{n} é"]}) for n in range(count)]


def opened(path, **settings):
    return open_source(SourceConfig(path=str(path), **settings))


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "set.array_record"
    assert write_array_record(path, iter(records())) == 4
    source = opened(path)
    assert [source[n].id for n in range(4)] == ["r0", "r1", "r2", "r3"]
    assert [shown(source[n]) for n in range(4)] == [0, 1, 2, 3]
    assert dict(source[2].captions) == {"short": "s2", "long": ["a", "b2 é"]}
    assert source[2].image == png(2)  # as it was encoded
    check_contract(source)


def test_caption_fields_by_name(tmp_path):
    path = tmp_path / "set.array_record"
    write_array_record(path, records())
    assert dict(opened(path, captions=("short",))[1].captions) == {"short": "s1"}
    with pytest.raises(SourceError, match="no caption field 'shrt', the nearest is 'short'; all: short, long"):
        opened(path, captions=("shrt",))


def test_arrays_come_back_bit_by_bit(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "latents": rng.normal(size=(4, 4, 16)).astype(np.float32),
        "hidden": rng.normal(size=(7, 3)).astype(ml_dtypes.bfloat16),  # after an odd number of bytes
        "flags": np.array([True, False, True]),
        "none": np.zeros((0, 5), np.float16),
        "scalar": np.array(3, np.int64),
        "strided": np.arange(12, dtype=np.int32).reshape(3, 4).T,
    }
    path = tmp_path / "set.array_record"
    write_array_record(path, [Record("r", b"odd" + png(1), {}, arrays), Record("s", None, {"c": "x"}, arrays)])
    for index in (0, 1):
        got = opened(path)[index].arrays
        assert list(got) == list(arrays)
        for name, array in arrays.items():
            assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
            assert got[name].tobytes() == array.tobytes()
            got[name][...] = 0  # the caller's own


def test_pixels_become_png_and_files_are_read(tmp_path):
    (tmp_path / "7.png").write_bytes(png(7))
    images = [picture(5), Image.fromarray(picture(6)), str(tmp_path / "7.png"), tmp_path / "7.png"]
    path = tmp_path / "set.array_record"
    write_array_record(path, [Record(str(n), image) for n, image in enumerate(images)])
    source = opened(path)
    assert [shown(source[n]) for n in range(4)] == [5, 6, 7, 7]


def test_captions_that_are_no_utf8_stay_so(tmp_path):
    path = tmp_path / "set.array_record"
    write_array_record(path, [Record("r", None, {"a": "é".encode(), "b": b"\xe9", "c": None, "d": 3})])
    captions = opened(path)[0].captions
    assert (captions["a"], captions["c"], captions["d"]) == ("é", None, 3)
    with pytest.raises(CaptionError) as error:
        usable_caption(captions["b"])
    assert error.value.kind == "utf8"


def test_nothing_is_overwritten_and_nothing_unfinished_is_left(tmp_path):
    path = tmp_path / "set.array_record"
    write_array_record(path, records())
    with pytest.raises(FileExistsError, match="would be overwritten"):
        write_array_record(path, records())

    def broken():
        yield records()[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_array_record(tmp_path / "b.array_record", broken())
    with pytest.raises(ValueError, match="array 'x' is object"):
        write_array_record(tmp_path / "c.array_record", [Record("r", None, {}, {"x": np.array([{}], object)})])
    with pytest.raises(ValueError, match="a caption that JSON cannot hold"):
        write_array_record(tmp_path / "d.array_record", [Record("r", None, {"x": object()})])
    assert [file.name for file in tmp_path.iterdir()] == ["set.array_record"]


def mutated():
    """Records whose header lies."""
    whole = encode(Record("r", png(1), {"c": "x"}, {"a": np.zeros(3, np.float32)}))
    yield whole[:-1]
    yield whole + b"\0"
    yield b"x" * 100
    yield b""
    yield MAGIC
    yield MAGIC + struct.pack("<I", 2**32 - 1) + b"{}"
    for header in (
        b"{}",
        b"[]",
        b"{oops",
        b'{"captions": {}, "image": -5, "arrays": [["a", "U8", [5]]]}',
        b'{"captions": {}, "image": null, "arrays": [["a", "O", [1]]]}',
        b'{"captions": {}, "image": null, "arrays": [["a", "F32", [-1, -1]]]}',
        b'{"captions": {}, "image": null, "arrays": [["a", "F32", [4611686018427387904, 4]]]}',
        b'{"captions": {}, "image": 1e999, "arrays": []}',
        b'{"captions": {}, "image": "9", "arrays": []}',
        b'{"captions": 3, "image": null, "arrays": []}',
    ):
        yield MAGIC + struct.pack("<I", len(header)) + header
        yield MAGIC + struct.pack("<I", len(header)) + header + b"\0\0\0\0"


@pytest.mark.parametrize("data", list(mutated()), ids=range(len(list(mutated()))))
def test_records_of_another_make_are_refused(data):
    with pytest.raises(RecordError) as error:
        decode(data, "file:3")
    assert error.value.kind == "format"
    assert str(error.value).startswith("file:3: ")


def test_files_of_another_make_are_refused(tmp_path):
    (tmp_path / "a.array_record").write_bytes(b"x" * 100_000)
    with pytest.raises(SourceError, match="no ArrayRecord file"):
        opened(tmp_path / "a.array_record")
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "b.array_record"), "group_size:1")
    writer.write(b"something else")
    writer.close()
    with pytest.raises(SourceError, match="no record of this format; `write_array_record`"):
        opened(tmp_path / "b.array_record")

"""The safetensors reader trusts nothing in a file; the writer is read by the reference implementation."""

import itertools
import json
import os
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from uae_jax.weights import safetensors
from uae_jax.weights.errors import WeightsError, gathered
from uae_jax.weights.safetensors import DTYPES, open_file, read_metadata, write_file


def build(path, header, data: bytes = b"", length: int | None = None):
    """Writes a file by hand: a header (an object, or raw bytes) and whatever data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(path) -> str:
    """The message with which a file is refused; every one is a single line that names the file."""
    with pytest.raises(WeightsError) as caught:
        open_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable() and len(message) < 12_000
    return message


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_survives_bit_for_bit(tmp_path, name):
    dtype = DTYPES[name]
    raw = np.arange(24 * dtype.itemsize, dtype=np.uint8)
    array = (raw[:24] % 2 == 0) if name == "BOOL" else raw.view(dtype)
    array = array.reshape(2, 3, 4)
    write_file(tmp_path / "x.safetensors", {"w": (array.shape, dtype)}, [array])
    found = open_file(tmp_path / "x.safetensors")["w"]
    assert (found.shape, found.dtype) == ((2, 3, 4), dtype)
    assert found.read().tobytes() == array.tobytes()
    assert found.rows(1, 2).shape == (1, 3, 4)
    assert found.rows(1, 2).read().tobytes() == array[1:2].tobytes()


def test_scalars_empty_tensors_and_strided_arrays(tmp_path):
    arrays = {
        "scalar": np.asarray(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "strided": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    path = tmp_path / "x.safetensors"
    write_file(path, {key: (a.shape, a.dtype) for key, a in arrays.items()}, arrays.values())
    found = open_file(path)
    for key, array in arrays.items():
        assert found[key].shape == array.shape  # a scalar stays one: () and not (1,)
        np.testing.assert_array_equal(found[key].read(), array)


def test_reference_implementation_reads_what_we_write_and_we_what_it_writes(tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.asarray([1, 2], np.int64)}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_file(ours, {key: (a.shape, a.dtype) for key, a in arrays.items()}, arrays.values())
    reference.save_file(arrays, theirs, metadata={"format": "pt", "note": "x"})
    for key, array in arrays.items():
        np.testing.assert_array_equal(reference.load_file(ours)[key], array)
        np.testing.assert_array_equal(open_file(theirs)[key].read(), array)
    assert read_metadata(ours) == {"format": "pt"}  # transformers refuses a file without it
    assert read_metadata(theirs) == {"format": "pt", "note": "x"}


def test_writer_refuses_what_the_format_lacks_and_what_does_not_match(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(WeightsError, match="complex64"):
        write_file(path, {"w": ((1,), np.dtype(np.complex64))}, [np.zeros(1, np.complex64)])
    with pytest.raises(WeightsError, match="__metadata__"):
        write_file(path, {"__metadata__": ((1,), np.dtype(np.float32))}, [np.zeros(1, np.float32)])
    with pytest.raises(WeightsError, match=r"w: got float32\(2,\), wanted float32\(3,\)"):
        write_file(path, {"w": ((3,), np.dtype(np.float32))}, [np.zeros(2, np.float32)])
    with pytest.raises(WeightsError, match=r"w: got float64"):
        write_file(path, {"w": ((2,), np.dtype(np.float32))}, [np.zeros(2)])


HEADERS = {
    "no JSON": (b"{nonsense", "header is not JSON"),
    "no UTF-8": (b'{"\xff\xfe": 1}', "header is not JSON"),
    "UTF-16": ('{"w": 1}'.encode("utf-16"), "header is not JSON"),
    "no object": (b"[1, 2]", "header is a JSON list, wanted an object"),
    "nested without end": (b"[" * 100_000, "header is not JSON"),
    "a number of 10,000 digits": (b'{"w": ' + b"9" * 10_000 + b"}", "header is not JSON"),
    "a key twice": (b'{"w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "w": 1}', "'w' stands there twice"),
    "metadata is a number": ({"__metadata__": 3}, "__metadata__ is malformed"),
    "metadata holds a number": ({"__metadata__": {"a": 3}}, "__metadata__ is malformed"),
    "entry is a number": ({"w": 3}, "w: header entry is malformed"),
    "entry is null": ({"w": None}, "w: header entry is malformed"),
    "entry is a list": ({"w": [1, 2]}, "w: header entry is malformed"),
    "no offsets": ({"w": {"dtype": "F32", "shape": [1]}}, "w: header entry is malformed"),
    "three offsets": ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1, 4]}}, "w: header entry is malformed"),
    "offsets are floats": ({"w": tensor([1], 0.0, 4.0)}, "w: header entry is malformed"),
    "offsets are flags": ({"w": tensor([1], False, True)}, "w: header entry is malformed"),
    "negative offset": ({"w": tensor([1], -4, 0)}, "w: header entry is malformed"),
    "backward offsets": ({"w": tensor([1], 4, 0)}, "w: -4 bytes, wanted 4"),
    "offsets beyond 64 bits": ({"w": tensor([1], 2**64, 2**64 + 4)}, "w: header entry is malformed"),
    "negative axis": ({"w": tensor([-1, -4], 0, 16)}, "w: header entry is malformed"),
    "infinite axis": ({"w": tensor([float("inf")], 0, 4)}, "w: header entry is malformed"),  # JSON says Infinity
    "axis is NaN": ({"w": tensor([float("nan")], 0, 4)}, "w: header entry is malformed"),
    "shape is a string": ({"w": tensor("12", 0, 4)}, "w: header entry is malformed"),
    "shape is nested": ({"w": tensor([[1]], 0, 4)}, "w: header entry is malformed"),
    "100 axes": ({"w": tensor([1] * 100, 0, 4)}, "w: header entry is malformed"),
    # 2**32 * 2**32 is 0 in 64 bits: a reader that multiplies in int64 sees an empty tensor.
    "axes that overflow to 0": ({"w": tensor([2**32, 2**32], 0, 0)}, "overflows"),
    "bytes that overflow to 4": ({"w": tensor([2**62 + 1], 0, 4)}, "overflows"),
    "empty but not addressable": ({"w": tensor([0, 2**62, 8], 0, 0)}, "overflows"),
    "unknown dtype": ({"w": tensor([1], 0, 4, "F31")}, "w: dtype 'F31', wanted one of F64"),
    "dtype is a list": ({"w": tensor([1], 0, 4, ["F32"])}, "w: header entry is malformed"),
    "too few bytes for the shape": ({"w": tensor([2], 0, 4)}, "w: 4 bytes, wanted 8 for F32[2]"),
    "overlap": ({"a": tensor([1], 0, 4), "b": tensor([1], 2, 6)}, "b: starts at data byte 2, wanted 4; it overlaps"),
    "the same bytes twice": ({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, "b: starts at data byte 0, wanted 4"),
    "gap": ({"a": tensor([1], 0, 4), "b": tensor([1], 5, 9)}, "b: starts at data byte 5, wanted 4; it leaves a gap"),
    "begins late": ({"a": tensor([1], 1, 5)}, "a: starts at data byte 1, wanted 0"),
    "more than the file has": ({"a": tensor([100], 0, 400)}, "a: data ends at byte 8, wanted 400; truncated"),
    "a key of control characters": ({"a\n\x1b[31mb": 3}, r"a\n\x1b[31mb: header entry is malformed"),
    "half a surrogate": (b'{"\\ud800": 3}', r"\ud800: header entry is malformed"),
    "a key of a megabyte": ({"k" * 1_000_000: 3}, "..."),
}


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_headers_are_refused(tmp_path, case):
    header, message = HEADERS[case]
    assert message in refusal(build(tmp_path / "x.safetensors", header, b"\0" * 8))


def test_hostile_files_are_refused(tmp_path):
    good = json.dumps({"w": tensor([2], 0, 8)}).encode()
    path = tmp_path / "x.safetensors"
    assert "missing" in refusal(tmp_path / "absent.safetensors") or "No such file" in refusal(tmp_path / "absent")
    assert "directory" in refusal(tmp_path)
    path.write_bytes(b"")
    assert "0 bytes, wanted at least 8" in refusal(path)
    path.write_bytes(b"PK\x03\x04")  # a zip, as torch.save writes: too short here
    assert "4 bytes" in refusal(path)
    path.write_bytes(b"PK\x03\x04" + bytes(4) + b"x" * 100)  # its first 8 bytes as a length: 67324752
    assert "truncated: header ends at byte 67324760, the file at 108" in refusal(path)
    build(path, good, b"\0" * 7)
    assert "w: data ends at byte 7, wanted 8; truncated" in refusal(path)
    build(path, good, b"\0" * 9)
    assert "w: data ends at byte 9, wanted 8; unclaimed bytes at the end" in refusal(path)
    build(path, good, b"", length=len(good) + 1)
    assert "truncated" in refusal(path)
    build(path, good, b"\0" * 8, length=2**64 - 1)
    assert f"header of {2**64 - 1} bytes, wanted at most 100000000" in refusal(path)


def test_a_long_header_is_refused_unread(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", safetensors.MAX_HEADER_BYTES + 1))
        file.truncate(8 + safetensors.MAX_HEADER_BYTES + 1)  # sparse: it takes no room
    tracemalloc.start()
    try:
        assert "wanted at most" in refusal(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # the header alone would be 100 MB


def test_a_terabyte_is_refused_before_anything_is_allocated(tmp_path):
    path = build(tmp_path / "x.safetensors", {"w": tensor([2**38], 0, 2**40)}, b"\0" * 16)
    tracemalloc.start()
    try:
        assert "truncated" in refusal(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_every_byte_of_a_header_changed_in_every_way(tmp_path):
    # One file, 8 + ~180 header bytes, each set to all 255 other values. The outcome is a refusal, or the same layout:
    # what passes can be a name, a comment, or a dtype of the same width (F16 -> I16), which the table then refuses.
    path = tmp_path / "x.safetensors"
    arrays = {"ab": np.arange(6, dtype=np.float16).reshape(2, 3), "c": np.arange(4, dtype=ml_dtypes.bfloat16)}
    write_file(path, {key: (a.shape, a.dtype) for key, a in arrays.items()}, arrays.values())
    whole = path.read_bytes()
    data = sum(a.nbytes for a in arrays.values())
    layout = sorted((t.shape, t.dtype.itemsize) for t in open_file(path).values())
    refused = passed = 0
    with path.open("r+b", buffering=0) as file:  # in place: rewriting the file 50,000 times takes minutes
        for place, value in itertools.product(range(len(whole) - data), range(256)):
            if value == whole[place]:
                continue
            file.seek(place)
            file.write(bytes([value]))
            try:
                found = open_file(path)
            except WeightsError as error:
                refused += 1
                assert str(error).isprintable()
            else:
                passed += 1
                assert sorted((t.shape, t.dtype.itemsize) for t in found.values()) == layout
                assert {t.read().tobytes() for t in found.values()} == {a.tobytes() for a in arrays.values()}
            file.seek(place)
            file.write(whole[place : place + 1])
    # Those that pass are the letters of two keys, of the metadata, and the padding spaces.
    assert refused > 0.8 * (refused + passed)
    assert passed > 0


def test_truncation_at_every_length_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write_file(path, {"w": ((2, 3), np.dtype(np.float32))}, [np.ones((2, 3), np.float32)])
    for length in range(path.stat().st_size - 1, -1, -1):
        os.truncate(path, length)
        refusal(path)


def test_a_file_that_shrinks_between_check_and_read(tmp_path):
    path = tmp_path / "x.safetensors"
    write_file(path, {"w": ((4,), np.dtype(np.float32))}, [np.ones(4, np.float32)])
    found = open_file(path)["w"]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="w: 8 bytes left in the file, wanted 16"):
        found.read()
    path.unlink()
    with pytest.raises(WeightsError, match="w: No such file"):
        found.read()


def test_messages_are_one_line_and_bounded():
    assert str(WeightsError("a\nb\x00c\ud800")) == r"a\nb\x00c\ud800"
    assert str(WeightsError("naïve 中")) == "naïve 中"
    assert len(str(WeightsError("x" * 100_000))) < 11_000
    message = str(gathered("file", [f"missing: {i}" for i in range(60)]))
    assert message.startswith("file: missing: 0; missing: 1;") and message.endswith("missing: 49; and 10 more")

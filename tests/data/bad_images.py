"""Odd images, as bytes: every kind of the reliability table, and what becomes of it."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def noise(width=48, height=32, channels=3, seed=0):
    """Pixels that do not compress, so that a cut or a flip hits pixel data."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(array=None):
    return encoded(Image.fromarray(noise() if array is None else array), "PNG")


def png_header(width, height):
    """A PNG whose header claims a size, with hardly any data behind it."""

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")


def png_16(array, *more):
    """A PNG of u16[H, W, C], which Pillow does not write: C of 2 is grey with alpha, 3 RGB, 4 RGBA.

    Rows are filtered by the pixel before, which the decoder must take to be 2 C bytes away; `more` are chunks.
    """
    height, width, channels = array.shape
    rows = array.astype(">u2").view(np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (1, 0)), constant_values=1)
    rows[:, 1 + 2 * channels :] -= rows[:, 1 : -2 * channels].copy()
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    middle = b"".join(_chunk(name, data) for name, data in [*more, (b"IDAT", zlib.compress(rows.tobytes()))])
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + middle + _chunk(b"IEND", b"")


def tiff_16(array, order="<", photometric=2, planes=False, extra=None, deflate=False):
    """A TIFF of u16[H, W, C] in one strip, or one for each plane; `extra` says what a fourth channel is."""
    height, width, channels = array.shape
    parts = np.moveaxis(array, 2, 0) if planes else array[None]
    strips = [part.astype(f"{order}u2").tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    tags = {256: [width], 257: [height], 258: [16] * channels, 259: [8 if deflate else 1], 262: [photometric]}
    tags |= {273: [0] * len(strips), 277: [channels], 278: [height], 279: [len(s) for s in strips]}
    tags |= {284: [2 if planes else 1]} | ({} if extra is None else {338: [extra]})
    end = 8 + 2 + 12 * len(tags) + 4
    behind = sum(4 * len(values) for values in tags.values() if len(values) > 1)
    tags[273] = [end + behind + sum(map(len, strips[:i])) for i in range(len(strips))]
    entries, values = b"", b""
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        place = packed if len(numbers) == 1 else struct.pack(f"{order}I", end + len(values))
        values += b"" if len(numbers) == 1 else packed
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + place
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + entries + struct.pack(f"{order}I", 0) + values + b"".join(strips)


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def float_tiff(bad):
    array = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    array[3, 4] = bad
    return encoded(Image.fromarray(array), "TIFF")


def animation():
    """A GIF of two frames."""
    frames = [Image.fromarray(noise(seed=seed)).convert("P") for seed in (0, 1)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


REFUSED = {
    "empty": ("empty", b""),
    "html": ("unreadable", b"<!DOCTYPE html><html><body>404</body></html>"),
    "svg": ("unreadable", b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>'),
    "eps": ("unreadable", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"),
    "truncated png": ("corrupt", png()[:2000]),
    "truncated jpeg": ("corrupt", encoded(Image.fromarray(noise()), "JPEG")[:700]),
    "flipped byte of pixels": ("corrupt", flipped(png(), len(png()) // 2)),
    "flipped byte of the checksum": ("corrupt", flipped(png(), len(png()) - 14)),
    "nan tiff": ("nan", float_tiff(np.nan)),
    "infinite tiff": ("nan", float_tiff(np.inf)),
    "1x1": ("small", png(noise(1, 1))),
    "15 pixels high": ("small", png(noise(32, 15))),
    "2000:1": ("aspect", png(noise(32_000, 16))),
    "bomb": ("bomb", png_header(50_000, 50_000)),
    "bomb that Pillow only warns of": ("bomb", png_header(13_000, 13_000)),
    "bomb that Pillow lets pass": ("bomb", png_header(8_001, 8_000)),
}

RED = (250, 10, 10)

# The 15 kinds of the reliability table: name -> (kind of refusal or None, conversion or None, bytes).
TABLE = {
    "empty": ("empty", None, b""),
    "html": ("unreadable", None, REFUSED["html"][1]),
    "truncated png": ("corrupt", None, REFUSED["truncated png"][1]),
    "truncated jpeg": ("corrupt", None, REFUSED["truncated jpeg"][1]),
    "flipped byte": ("corrupt", None, REFUSED["flipped byte of pixels"][1]),
    "zero size": ("unreadable", None, png_header(0, 32)),
    "1x1": ("small", None, REFUSED["1x1"][1]),
    "2000:1": ("aspect", None, REFUSED["2000:1"][1]),
    "16-bit": (
        None,
        "16-bit",
        encoded(Image.fromarray(np.arange(0, 32 * 32 * 50, 50, np.uint16).reshape(32, 32)), "PNG"),
    ),
    "cmyk": (None, "cmyk", encoded(Image.new("RGB", (32, 32), RED).convert("CMYK"), "JPEG")),
    "alpha": (None, "alpha", encoded(Image.new("RGBA", (32, 32), (0, 0, 0, 128)), "PNG")),
    "nan tiff": ("nan", None, float_tiff(np.nan)),
    "gif": (None, "animation", animation()),
    "svg": ("unreadable", None, REFUSED["svg"][1]),
    "bomb": ("bomb", None, REFUSED["bomb"][1]),
}

"""Every odd image of the reliability table, and what becomes of it."""

import io
import resource
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.data.bad_images import REFUSED, TABLE, encoded, flipped, noise, png, png_16, png_header, tiff_16
from uae_jax.data.images import ImageError, ImageLimits, open_image

RED, BLUE = (250, 10, 10), (10, 10, 250)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("by_path", [True, False], ids=["path", "bytes"])
def test_what_is_refused_and_why(tmp_path, name, by_path):
    kind, data = REFUSED[name]
    file = tmp_path / "picture.jpg"
    file.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a refusal is no warning
        with pytest.raises(ImageError) as error:
            open_image(file if by_path else data)
    assert error.value.kind == kind
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(file) if by_path else "bytes")


def test_a_zero_size_image_is_refused():
    # Pillow's decoders differ in what they say of it; none may give an image.
    for data in (png_header(0, 32), png_header(32, 0)):
        with pytest.raises(ImageError):
            open_image(data)
    with pytest.raises(ImageError):
        open_image(np.zeros((0, 32, 3), np.uint8))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageError, match="no such file") as error:
            open_image(path)
        assert error.value.kind == "missing"


def test_a_bomb_is_refused_by_its_header_without_its_memory():
    # 50,000 x 50,000 RGB would be 7.5 GB; 169 megapixels half a gigabyte.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in (50_000, 13_000, 8_001):
        with pytest.raises(ImageError):
            open_image(png_header(size, size))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 200e6


@pytest.mark.parametrize("at", range(60, 5000, 97))
def test_no_flipped_byte_of_a_png_passes(at):
    data = png()
    if at < len(data):
        with pytest.raises(ImageError):
            open_image(flipped(data, at))


def test_truncated_images_are_refused_whatever_pillow_is_told(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for name in ("truncated png", "truncated jpeg"):
        with pytest.raises(ImageError):
            open_image(REFUSED[name][1])
    assert ImageFile.LOAD_TRUNCATED_IMAGES  # the caller's setting is left as it was


def test_a_lazily_opened_pil_image_that_is_broken_is_refused():
    with pytest.raises(ImageError) as error:
        open_image(Image.open(io.BytesIO(REFUSED["truncated png"][1])))
    assert error.value.kind == "corrupt"


def test_16_bit_pixels_are_scaled_by_their_own_range():
    # 1000 -> 0, 2000 -> 127.5 -> 128 (to even), 3000 -> 255; Pillow alone would clip all three to white.
    array = np.full((32, 32), 1000, np.uint16)
    array[:, 10:20], array[:, 20:] = 2000, 3000
    data = encoded(Image.fromarray(array), "PNG")
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    got = np.asarray(open_image(data))
    assert got.shape == (32, 32, 3)
    assert [got[0, x].tolist() for x in (0, 10, 20)] == [[0] * 3, [128] * 3, [255] * 3]


def test_16_bit_tiff_of_either_byte_order():
    array = np.linspace(0, 60_000, 32 * 32).astype(np.uint16).reshape(32, 32)
    little = encoded(Image.fromarray(array), "TIFF")
    big = encoded(Image.fromarray(array.astype(">u2")), "TIFF")
    assert np.array_equal(open_image(little), open_image(big))
    assert np.asarray(open_image(big)).max() == 255


def twelve_bits(channels=3):
    """u16[32, 48, C] of 12-bit numbers, alpha full, and what becomes of them, u8[32, 48, 3]."""
    array = np.random.default_rng(0).integers(100, 4000, (32, 48, channels)).astype(np.uint16)
    if channels in (2, 4):
        array[..., -1] = 65535
    array[0, 0, 0], array[0, 1, 0] = 100, 4000  # whatever else was drawn
    wanted = np.round((array[..., : channels - 1 + channels % 2] - 100.0) * 255 / 3900).astype(np.uint8)
    return array, np.broadcast_to(wanted, (32, 48, 3))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colours_of_png_are_scaled_by_their_own_range(channels):
    # Pillow opens these by their upper bytes, 0 to 15 of 255: nearly black.
    array, wanted = twelve_bits(channels)
    told = []
    got = open_image(png_16(array), note=told.append)
    assert np.array_equal(got, wanted)
    assert told == (["16-bit"] if channels == 3 else ["16-bit", "alpha"])


@pytest.mark.parametrize(
    "settings",
    [{}, {"order": ">"}, {"deflate": True}, {"order": ">", "deflate": True}],
    ids=["little", "big", "packed", "big, packed"],
)
@pytest.mark.parametrize("extra", [None, 0, 2], ids=["rgb", "rgb and padding", "alpha"])
def test_16_bit_colours_of_tiff_are_scaled_by_their_own_range(settings, extra):
    array, wanted = twelve_bits(3 if extra is None else 4)
    told = []
    got = open_image(tiff_16(array, extra=extra, **settings), note=told.append)
    assert np.array_equal(got, wanted)
    assert told == (["16-bit", "alpha"] if extra == 2 else ["16-bit"])


def test_16_bit_alpha_transparent_colour_and_orientation():
    array = twelve_bits(4)[0]
    array[5, 5, 3] = 0
    assert open_image(png_16(array)).getpixel((5, 5)) == (255, 255, 255)
    # Colours of the same upper byte, of which one is not there.
    array = twelve_bits(3)[0]
    array[5, 5], array[5, 6] = (1000, 1001, 1002), (1000, 1001, 1003)
    got = open_image(png_16(array, (b"tRNS", struct.pack(">3H", 1000, 1001, 1002))))
    assert got.getpixel((5, 5)) == (255, 255, 255)
    assert got.getpixel((6, 5)) == (59, 59, 59)  # 900 * 255 / 3900 = 58.8
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = open_image(png_16(twelve_bits()[0], (b"eXIf", exif.tobytes()[6:])))
    assert np.array_equal(turned, np.rot90(twelve_bits()[1], -1))


def test_16_bit_cmyk():
    ink = np.full((32, 32, 4), 0, np.uint16)
    ink[:16, :, 1] = 4095
    told = []
    got = open_image(tiff_16(ink, photometric=5), note=told.append)
    assert (got.getpixel((0, 0)), got.getpixel((0, 31)), told) == ((255, 0, 255), (255,) * 3, ["16-bit", "cmyk"])


@pytest.mark.parametrize(
    "settings",
    [{"planes": True}, {"planes": True, "deflate": True}, {"extra": 1}],
    ids=["planes", "packed planes", "premultiplied"],
)
def test_16_bit_colours_that_cannot_be_read_whole_are_refused(settings):
    with pytest.raises(ImageError, match="16 bits in planes of their own, or multiplied by alpha") as error:
        open_image(tiff_16(twelve_bits(4 if "extra" in settings else 3)[0], **settings))
    assert error.value.kind == "depth"


def test_cmyk_becomes_rgb():
    image = Image.new("RGB", (32, 32), RED).convert("CMYK")
    got = np.asarray(open_image(encoded(image, "JPEG", quality=95)))
    assert np.abs(got.astype(int) - RED).max() <= 6  # JPEG rounds


def test_alpha_is_laid_over_white():
    # Half-transparent black over white: 255 (1 - 128/255) = 127. Without alpha it would be 0.
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 128))
    assert np.unique(open_image(encoded(image, "PNG"))).tolist() == [127]
    grey = Image.new("LA", (32, 32), (0, 0))
    assert np.unique(open_image(encoded(grey, "PNG"))).tolist() == [255]


def test_a_transparent_palette_colour_becomes_white():
    image = Image.new("P", (32, 32), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (16, 0, 32, 32))
    got = open_image(encoded(image, "PNG", transparency=0))
    assert got.getpixel((0, 0)) == (255, 255, 255)
    assert got.getpixel((31, 0)) == BLUE


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, BLUE)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert open_image(data).getpixel((5, 5)) == RED, kind


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "LA", "RGBA", "CMYK", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(noise()).convert("RGB" if mode in ("1", "P") else "L").convert(mode)
    got = open_image(image)
    assert got.mode == "RGB"
    assert got.size == image.size


def test_photographs_are_turned_upright():
    # Orientation 6: the camera was turned, so the stored left edge is the top.
    image = Image.new("RGB", (48, 32), BLUE)
    image.paste(RED, (0, 0, 8, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    got = open_image(encoded(image, "PNG", exif=exif))
    assert got.size == (32, 48)
    assert got.getpixel((16, 2)) == RED
    assert got.getpixel((16, 40)) == BLUE


def test_what_was_given_is_not_changed():
    image = Image.fromarray(noise())
    got = open_image(image)
    got.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(image, noise())


def test_arrays():
    assert np.array_equal(open_image(noise()), noise())
    grey = noise()[..., 0]
    assert np.array_equal(open_image(grey), np.repeat(grey[..., None], 3, axis=-1))
    assert open_image(noise(channels=4)).mode == "RGB"
    for bad in (noise().astype(np.float32), noise(channels=2), noise()[None], np.zeros(5, np.uint8)):
        with pytest.raises(ImageError, match="wanted uint8") as error:
            open_image(bad)
        assert error.value.kind == "array"


@pytest.mark.parametrize("name", TABLE)
def test_conversions_are_told(name):
    kind, conversion, data = TABLE[name]
    told = []
    if kind is None:
        open_image(data, note=told.append)
    else:
        with pytest.raises(ImageError) as error:
            open_image(data, note=told.append)
        assert error.value.kind == kind
    assert told == ([] if conversion is None else [conversion])


def test_what_loses_nothing_is_no_conversion():
    told = []
    for mode in ("RGB", "L", "P", "1"):
        open_image(encoded(Image.fromarray(noise()).convert(mode), "PNG"), note=told.append)
    still = Image.fromarray(noise()).convert("P")
    open_image(encoded(still, "GIF"), note=told.append)  # one frame
    assert told == []


def test_a_transparent_colour_of_rgb_becomes_white():
    # PNG's tRNS on an RGB image names one colour that is not there.
    image = Image.new("RGB", (32, 32), RED)
    image.paste(BLUE, (16, 0, 32, 32))
    told = []
    got = open_image(encoded(image, "PNG", transparency=RED), note=told.append)
    assert (got.getpixel((0, 0)), got.getpixel((31, 0)), told) == ((255, 255, 255), BLUE, ["alpha"])


def test_no_image_and_what_cannot_be_one():
    for value, kind in ((None, "missing"), (3, "type"), (["a.png"], "type")):
        with pytest.raises(ImageError) as error:
            open_image(value)
        assert error.value.kind == kind


def test_limits_are_a_setting():
    data = png(noise(40, 20))
    with pytest.raises(ImageError, match=r"40x20 pixels, wanted at most 500 in all"):
        open_image(data, ImageLimits(max_pixels=500))
    with pytest.raises(ImageError, match="at least 32"):
        open_image(data, ImageLimits(min_side=32))
    with pytest.raises(ImageError, match=r"at most 1.5 to 1"):
        open_image(data, ImageLimits(max_aspect=1.5))

"""What every source must do, and small pictures to make sources of."""

import concurrent.futures
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.data.bad_images import encoded
from uae_jax.data.images import open_image


def picture(number):
    """A plain picture that tells its number: every pixel is (number, 2 number, 100)."""
    return np.full((20, 24, 3), (number, 2 * number, 100), np.uint8)


def png(number):
    """The same as a PNG file."""
    return encoded(Image.fromarray(picture(number)), "PNG")


def shown(record):
    """The number of the picture in a record."""
    pixels = np.asarray(open_image(record.image))
    assert (pixels == pixels[0, 0]).all() and pixels[0, 0, 2] == 100
    return int(pixels[0, 0, 0])


def content(record):
    """A record as something that can be compared; what a lazy mapping holds is read."""
    captions = {
        field: list(v) if not isinstance(v, str | bytes | type(None)) else v for field, v in record.captions.items()
    }
    image = record.image.tobytes() if isinstance(record.image, np.ndarray) else record.image
    return record.id, image, captions


def check_contract(source):
    """Random access, the same each time, from any thread, from a pickled copy that is small; nothing out of range."""
    count = len(source)
    assert source.name
    records = [content(source[index]) for index in range(count)]
    assert len({id for id, *_ in records}) == count
    packed = pickle.dumps(source)
    assert len(packed) < 20_000  # no decoded images, no open files
    copy = pickle.loads(packed)
    backwards = [content(copy[index]) for index in reversed(range(count))]
    assert backwards[::-1] == records
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda index: content(source[index]), list(range(count)) * 5)) == records * 5
    assert content(source[np.int64(count - 1)]) == records[-1]
    for outside in (count, -1):
        with pytest.raises(IndexError):
            source[outside]

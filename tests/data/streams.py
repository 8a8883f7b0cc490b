"""Small sources in memory, which worker processes can import."""

import io
import time

import numpy as np
from PIL import Image

from uae_jax.data.records import Record


class Numbers:
    """Records that are nothing but their number, as caption and as array."""

    def __init__(self, count, name="numbers", delay=0.0):
        self.name, self.count, self.delay = name, count, delay

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        time.sleep(self.delay)
        return Record(self.id(index), captions={"text": str(index)}, arrays={"number": np.int32(index)})

    def id(self, index):
        return f"{self.name}:{index}"


class Pictures:
    """Images of four shapes with several captions; every seventh is no image, every eleventh has no caption."""

    name = "pictures"
    sizes = ((64, 64), (40, 90), (100, 36), (70, 50))

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def is_good(self, index):
        return index % 7 != 3 and index % 11 != 5

    def __getitem__(self, index):
        width, height = self.sizes[index % 4]
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
        captions = {"short": f"picture {index}", "long": [f"picture {index}, wording {n}" for n in range(3)]}
        if index % 11 == 5:
            captions = {"short": "  ", "long": None}
        return Record(f"pictures:{index}", b"<html>" if index % 7 == 3 else png(pixels), captions)


class Broken(Numbers):
    """Fails in a way that is not the record's fault."""

    def __getitem__(self, index):
        if index == 5:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()

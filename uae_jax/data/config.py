"""The settings that name data: sources, their mixture, and how a record becomes a sample."""

import dataclasses
from typing import Literal

from uae_jax.data.images import ImageLimits

Kind = Literal["auto", "folder", "table", "webdataset", "arrayrecord", "tfds", "huggingface", "scenes"]


MISSING = "???"  # the path of a source that a config leaves to who runs it; one may plan without, and not read


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """Which part of the synthetic scene world.

    Attributes:
      count: scenes.
      seed: of the first one; scenes of different seeds have nothing in common.
      size: side in pixels.
      objects: relative frequencies of 1, 2, ... 6 objects.
      object_sizes: relative frequencies of small, medium and large objects.
      levels: of detail, a caption field each; "regions" and "placed_regions" are labels of a 4x4 grid's parts.
      variants: differently worded captions of each level are drawn from this many.
      keep: probability with which a caption says what its level would say of an object's colour, and of anything else
        but its shape; below 1 captions leave things open.
    """

    count: int = 100_000
    seed: int = 0
    size: int = 64
    objects: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    object_sizes: tuple[float, ...] = (0.3, 0.4, 0.3)
    levels: tuple[str, ...] = ("tag", "short", "medium", "long", "exhaustive")
    variants: int = 4
    keep: float = 1.0


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source.

    Attributes:
      path: folder, file, glob, or the name of a tensorflow-datasets builder ("name:version/split"); "" for scenes.
      kind: of source; "auto" tells by looking.
      weight: share in the mixture, relative to the other sources'.
      image: column or feature that holds the image, or its path, in tables and datasets.
      captions: fields that a caption is drawn from, and their relative weights; () is every field, alike.
      split: of a dataset that has several.
      scenes: for the kind "scenes".
    """

    path: str = ""
    kind: Kind = "auto"
    weight: float = 1.0
    image: str = "image"
    captions: tuple[str, ...] = ()
    caption_weights: tuple[float, ...] = ()
    split: str = "train"
    scenes: ScenesConfig = ScenesConfig()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A stream of samples.

    Attributes:
      sources: at least one.
      resolution: square root of an image's area after resizing, in pixels; 0 leaves images out.
      aspects: buckets, width over height; each image is resized and cropped to the nearest in logarithm.
      multiple_of: sides of buckets are multiples of it.
      crop: what of an image is kept where its shape is not its bucket's.
      flip: probability of mirroring left and right; not for captions that name sides.
      with_captions: whether a record without a usable caption is bad.
      shuffle: over all records, anew in each epoch.
      workers: processes that decode; 0 decodes in the main one.
      buffer: samples that workers are ahead; without workers, a thread reads a few batches ahead.
      max_bad_fraction: of the records read so far; more than that ends the run (not before 100 records are read).
      limits: what is an image at all.
    """

    sources: tuple[SourceConfig, ...] = ()
    resolution: int = 64
    aspects: tuple[float, ...] = (1.0,)
    multiple_of: int = 16
    crop: Literal["center", "random"] = "center"
    flip: float = 0.0
    with_captions: bool = True
    shuffle: bool = True
    workers: int = 0
    buffer: int = 64
    max_bad_fraction: float = 0.1
    limits: ImageLimits = ImageLimits()

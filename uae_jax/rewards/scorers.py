"""Similarity of two images in the eyes of CLIP, LongCLIP, DINOv2 or DINOv3, each with its own preprocessing.

Similarity is the cosine of two feature vectors, raw: projected image features for CLIP, the class token for DINO.

Letters: B images, S side of the model's input in pixels, E width of the features.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from uae_jax.data.prompts import bucket
from uae_jax.data.vision_inputs import CLIP_MEAN, CLIP_STD
from uae_jax.models.runtime import Runtime
from uae_jax.weights import checkpoint, shapes_only
from uae_jax.weights.architecture import Pretrained
from uae_jax.weights.pretrained import load_pretrained, read_files

Array = jax.Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_JAX_RESAMPLING = {Image.Resampling.BICUBIC: "cubic", Image.Resampling.BILINEAR: "linear"}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From an image of any size to a scorer's input.

    Attributes:
      shortest: scale the shorter side to this many pixels, then crop; None scales both sides to `side`.
      side: S.
      resample: PIL's filter.
      mean, std: per channel, on a scale of 0 to 1.
      floats: scale floats, as PyTorch does; else bytes, as PIL does, which rounds and clips after each of its passes.
      rounded: of an odd number of pixels that the crop leaves out, round half of it to even on the left and the top,
        as torchvision does; transformers rounds down.
    """

    shortest: int | None
    side: int
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    floats: bool = False
    rounded: bool = False

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB image -> f32[S, S, 3], normalised."""
        rows, columns = self._scaled(image.height, image.width)
        left, top = self._left_out(columns), self._left_out(rows)
        box = (left, top, left + self.side, top + self.side)
        if self.floats:
            channels = [channel.convert("F").resize((columns, rows), self.resample) for channel in image.split()]
            pixels = np.stack([np.asarray(channel.crop(box)) for channel in channels], axis=-1) / np.float32(255)
        else:
            pixels = np.asarray(image.resize((columns, rows), self.resample).crop(box), np.float32) / 255
        return (pixels - np.float32(self.mean)) / np.float32(self.std)

    def on_device(self, images: Array) -> Array:
        """The same for f32[B, H, W, 3] in [0, 1], pure and differentiable: f32[B, S, S, 3].

        Agrees with the host but for PIL's rounding to whole levels after each of its two passes, columns before rows.
        """
        count, height, width, channels = images.shape
        rows, columns = self._scaled(height, width)
        way = _JAX_RESAMPLING[Image.Resampling(self.resample)]
        pixels = images.astype(jnp.float32)
        for shape in ((count, height, columns, channels), (count, rows, columns, channels)):  # PIL's two passes
            pixels = jax.image.resize(pixels, shape, way)
            pixels = pixels if self.floats else jnp.clip(pixels, 0.0, 1.0)
        top, left = self._left_out(rows), self._left_out(columns)
        pixels = pixels[:, top : top + self.side, left : left + self.side]
        return (pixels - np.float32(self.mean)) / np.float32(self.std)

    def _left_out(self, length: int) -> int:
        """Pixels before the crop, on one axis."""
        return round((length - self.side) / 2) if self.rounded else (length - self.side) // 2

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before the crop."""
        if self.shortest is None:
            return self.side, self.side
        shorter = min(height, width)
        # The longer side is cut to whole pixels, not rounded, as the published processors do.
        rows, columns = (
            self.shortest if side == shorter else int(side * self.shortest / shorter) for side in (height, width)
        )
        return rows, columns


# What each family's published processor does, where the folder does not say: CLIP's and the DINOs' in transformers,
# LongCLIP's by torchvision. DINOv3's turns images to floats before it scales them; the others scale bytes.
CLIP_INPUT = Preprocessing(224, 224, Image.Resampling.BICUBIC, CLIP_MEAN, CLIP_STD)
DINOV2_INPUT = Preprocessing(256, 224, Image.Resampling.BICUBIC, IMAGENET_MEAN, IMAGENET_STD)
DINOV3_INPUT = Preprocessing(None, 224, Image.Resampling.BILINEAR, IMAGENET_MEAN, IMAGENET_STD, floats=True)


def preprocessing_from_json(value: dict, default: Preprocessing) -> Preprocessing:
    """Reads a published `preprocessor_config.json`; what it leaves out is the family's default."""
    size, crop = value.get("size"), value.get("crop_size")
    shortest = size if isinstance(size, int) else (size or {}).get("shortest_edge", None if size else default.shortest)
    crop = crop.get("height") if isinstance(crop, dict) else crop
    if not value.get("do_center_crop", default.shortest is not None):
        crop = None
    whole = size.get("height") if isinstance(size, dict) else None
    return Preprocessing(
        shortest=shortest,
        side=crop or whole or default.side,
        resample=value.get("resample", default.resample),
        mean=tuple(value.get("image_mean", default.mean)),
        std=tuple(value.get("image_std", default.std)),
        floats=default.floats,
        rounded=default.rounded and not value,
    )


_CLIP_TEXT = 77  # tokens that CLIP reads; LongCLIP is the same network but for reading more


def _reads_more(model: Pretrained) -> bool:
    """Whether a CLIP is a LongCLIP."""
    text = getattr(model.config, "text", None)
    return text is not None and text.positions > _CLIP_TEXT


@dataclasses.dataclass
class Scorer:
    """A feature extractor and its preprocessing."""

    model: Pretrained
    preprocessing: Preprocessing
    runtime: Runtime = Runtime()

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, *, mesh: Mesh | None = None) -> "Scorer":
        """Loads a CLIP, DINOv2 or DINOv3 folder, in float32.

        Raises:
          WeightsError: if it cannot be loaded.
          ValueError: if the architecture has no image features.
        """
        model = load_pretrained(name_or_path, dtype=jnp.float32, mesh=mesh)
        name = model.architecture.name
        defaults = {"CLIP": CLIP_INPUT, "Dinov2": DINOV2_INPUT, "DINOv3": DINOV3_INPUT}
        default = next((value for prefix, value in defaults.items() if name.startswith(prefix)), None)
        if default is None or name.startswith("CLIPText"):
            raise ValueError(f"{name_or_path}: {name} has no image features; wanted CLIP, DINOv2 or DINOv3")
        if default is CLIP_INPUT:
            side = getattr(model.config, "vision", model.config).image_size
            long = _reads_more(model)
            default = dataclasses.replace(CLIP_INPUT, shortest=side, side=side, rounded=long)
        stated = {}
        if not (shapes_only.active() and not shapes_only.is_there(name_or_path, "model")):
            stated = json.loads(read_files(name_or_path).get("preprocessor_config.json", b"{}"))
        return cls(model, preprocessing_from_json(stated, default))

    @classmethod
    def check(cls, name_or_path: str | os.PathLike, name: str) -> None:
        """Raises what `from_pretrained` would, having read no weights, and where a name belongs to another model.

        Args:
          name_or_path: of the scorer.
          name: what it is to be reported as; only "clip", "longclip", "dinov2" and "dinov3" say what they must be.

        Raises:
          WeightsError, ValueError: see above.
        """
        folder = checkpoint.resolve(name_or_path)
        model = shapes_only.tried(lambda: cls.from_pretrained(folder)).model
        kind, text = model.architecture.name, getattr(model.config, "text", None)
        wanted = {"clip": "CLIP", "longclip": "CLIP", "dinov2": "Dinov2", "dinov3": "DINOv3"}.get(name, "")
        if not kind.startswith(wanted):
            raise ValueError(f"{name_or_path} holds a {kind}, wanted a {wanted} for {name}; name another folder")
        long = name == "longclip"
        if text is not None and wanted == "CLIP" and _reads_more(model) != long:
            count = f"{'more than' if long else 'at most'} {_CLIP_TEXT}"
            raise ValueError(
                f"{name_or_path} reads texts of {text.positions} tokens, wanted {count} for {name}; name another folder"
            )

    def features(self, params: Any, images: Array) -> Array:
        """f32[B, S, S, 3], preprocessed -> f32[B, E], each of length 1. Pure; to be jitted.

        Float32 throughout: by default TPUs and GPUs round what they multiply to 8 and 11 bits, which a cosine shows.
        """
        module = self.model.architecture.module(self.model.config, self.runtime)
        method = "encode_image" if self.model.architecture.name == "CLIPModel" else None
        with jax.default_matmul_precision("highest"):
            out = module.apply({"params": params}, images, method=method)
        vectors = (out[0] if isinstance(out, tuple) else out).astype(jnp.float32)
        return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)

    @functools.cached_property
    def _similarity(self) -> Any:
        return jax.jit(lambda p, a, b: jnp.sum(self.features(p, a) * self.features(p, b), axis=-1))

    def similarity(self, first: Sequence[Image.Image], second: Sequence[Image.Image], batch: int = 32) -> np.ndarray:
        """Cosine of each pair: f32[pairs]."""
        scores = []
        for start in range(0, len(first), batch):
            pair = [
                np.stack([self.preprocessing(image) for image in side[start : start + batch]])
                for side in (first, second)
            ]
            count = len(pair[0])
            extra = bucket(count, 1) - count  # padded to a few batch sizes, so that a short last batch costs little
            padded = [np.pad(p, ((0, extra), (0, 0), (0, 0), (0, 0)), mode="edge") for p in pair]
            scores.append(np.asarray(self._similarity(self.model.params, *padded))[:count])
        return np.concatenate(scores) if scores else np.zeros(0, np.float32)

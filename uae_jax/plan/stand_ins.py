"""Models that are not there yet, by their sizes: what an earlier stage will write, what is still to be downloaded."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from uae_jax.models import clip
from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.models.dinov2 import DINOv2Config
from uae_jax.models.dinov3 import DINOv3Config
from uae_jax.models.projector import ProjectorConfig
from uae_jax.models.qwen2_5_vl import config as qwen
from uae_jax.models.sd3 import SD3Config
from uae_jax.weights import new, shapes_only, uae
from uae_jax.weights.architecture import Architecture, Pretrained

SIZES = ("full", "small", "tiny")
# Parts of the published model. The tokenizer that stands in is the tiny one: so are the numbers of its special tokens.
_PUBLISHED: dict[str, Callable[[], Any]] = {
    "projector": ProjectorConfig,
    "decoder": SD3Config.sd35_large,
    "vae": AutoencoderKLConfig.sd3,
    "text_encoder": clip.text_l14,
    "text_encoder_2": clip.text_big_g,
}
# What a name that is not there is taken for, by the first of these words in it.
_SCORERS: dict[str, Callable[[], Any]] = {
    "longclip": clip.longclip_l14,
    "clip": clip.clip_l14,
    "dinov3": DINOv3Config.large,
    "dinov2": DINOv2Config.large,
}
_VAES = ("vae", "autoencoder")


class StandIns:
    """Makes stand-ins of a size and remembers for what; see `shapes_only.shapes_only`."""

    def __init__(self, size: str):
        """Takes "full" (the published models), "small" or "tiny".

        Raises:
          ValueError: on another size.
        """
        if size not in SIZES:
            raise ValueError(f"size of models is {size!r}, wanted one of {', '.join(SIZES)}")
        self.size = size
        self.made: dict[str, str] = {}  # name -> what it was taken for

    def __call__(self, name: str, kind: str) -> Any:
        if kind == "uae":
            size = "tiny" if name == "tiny" else self.size
            self.made[name] = f"a model of size {size}"
            return _uae(size)
        model = self._model(name)
        self.made[name] = f"{model.architecture.name} of size {self.size}"
        return model

    def _model(self, name: str) -> Pretrained:
        low = name.lower()
        sizes = new.UAE_SIZES["small" if self.size == "full" else self.size]
        if any(word in low for word in _VAES):
            architecture, config = sizes["vae"]
            return _empty(architecture, _PUBLISHED["vae"]() if self.size == "full" else config(), jnp.float32)
        word = next((word for word in _SCORERS if word in low), None)
        if word is None:
            raise ValueError(
                f"{name}: not there, and its name does not tell what it is; wanted a folder, or a name with one of "
                f"{', '.join([*_SCORERS, *_VAES])} in it"
            )
        architecture, config = new.SCORER_SIZES["tiny"][word]
        return _empty(architecture, config() if self.size == "tiny" else _SCORERS[word](), jnp.float32)


def _uae(size: str) -> uae.UAEWeights:
    known = new.UAE_SIZES["tiny" if size == "full" else size]
    published = {"encoder": _encoder, **_PUBLISHED}
    dtype = jnp.bfloat16 if size == "full" else jnp.float32  # as published, and as stages write it
    parts = {
        part: _empty(architecture, published[part]() if size == "full" else config(), dtype)
        for part, (architecture, config) in known.items()
    }
    return uae.UAEWeights(**parts, files=new.fitting_files(size, "tiny"))


def _encoder() -> qwen.Qwen2_5_VLConfig:
    tiny = qwen.tiny()
    tokens = {field: getattr(tiny, field) for field in vars(tiny) if field.endswith("_token_id")}
    return dataclasses.replace(qwen.qwen2_5_vl_3b(), **tokens)


def _empty(architecture: Architecture, config: Any, dtype: Any) -> Pretrained:
    return Pretrained(architecture, config, shapes_only.zeros(architecture.abstract(config), dtype))

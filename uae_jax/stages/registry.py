"""Stage name -> module, loaded when it is needed."""

import difflib
import importlib

from uae_jax.stages.base import Stage

_STAGES = {
    "pretrain": "Pretrain",
    "region_words": "RegionWords",
    "caption_sft": "CaptionSFT",
    "contrastive": "Contrastive",
    "autoencoder": "Autoencoder",
    "self_distillation": "SelfDistillation",
    "cold_start": "ColdStart",
    "gen_for_understanding": "GenForUnderstanding",
    "understanding_for_gen": "UnderstandingForGen",
}


def names() -> list[str]:
    """All stages."""
    return list(_STAGES)


def find(name: str) -> type[Stage]:
    """The class of a stage.

    Raises:
      ValueError: if there is none of this name; names the nearest.
    """
    if name not in _STAGES:
        near = difflib.get_close_matches(str(name), _STAGES, n=1, cutoff=0.0)[0]
        raise ValueError(f"stage is {name!r}, the nearest there is {near!r}; all: {', '.join(_STAGES)}")
    return getattr(importlib.import_module(f"uae_jax.stages.{name}"), _STAGES[name])

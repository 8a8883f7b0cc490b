"""The synthetic scene world: nothing is stored, record i of a seed is always the same."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from uae_jax.data.config import ScenesConfig
from uae_jax.data.records import Record
from uae_jax.data.scenes import (
    LEVELS,
    PLACED_REGIONS,
    REGIONS,
    Scene,
    SceneConfig,
    render,
    sample_scene,
    write_caption,
    write_regions,
)
from uae_jax.data.sources.base import SourceError, check_index, nearest

_LABELS = (REGIONS, PLACED_REGIONS)
_CAPTIONS = 1  # tells the random numbers of captions from those of scenes


class ScenesSource:
    """Scenes as pixels, with a caption field for each level of detail."""

    def __init__(self, config: ScenesConfig, captions: tuple[str, ...] = ()):
        """Checks the settings.

        Args:
          config: which scenes.
          captions: levels, of those in `config.levels`; () takes all of them.

        Raises:
          SourceError: on an unknown level, or a number out of range.
        """
        for level in config.levels:
            nearest(level, (*LEVELS, *_LABELS), "caption level", "scenes")
        levels = tuple(nearest(level, config.levels, "caption level", "scenes") for level in captions)
        for name in ("count", "size", "variants"):
            if getattr(config, name) < 1:
                raise SourceError(f"scenes: {name} is {getattr(config, name)}, wanted 1 or more")
        if not 0 <= config.keep <= 1:
            raise SourceError(f"scenes: keep is {config.keep}, wanted a probability")
        self.name = f"scenes (seed {config.seed})"
        self._config, self._levels = config, levels or config.levels
        self._world = SceneConfig(counts=config.objects, sizes=config.object_sizes)

    def __len__(self) -> int:
        return self._config.count

    def __getitem__(self, index: int) -> Record:
        index = check_index(index, len(self), self.name)
        scene = sample_scene((self._config.seed, index), self._world)
        captions = SceneCaptions(scene, self._config, index, self._levels)
        return Record(self.id(index), render(scene, self._config.size), captions)

    def id(self, index: int) -> str:
        return f"scenes:{self._config.seed}:{index}"

    def scene(self, index: int) -> Scene:
        """The ground truth of a record."""
        return sample_scene((self._config.seed, check_index(index, len(self), self.name)), self._world)


@dataclasses.dataclass(frozen=True)
class SceneCaptions(Mapping):
    """Level -> texts. A sample needs one text of one level, so each is written when it is asked for."""

    scene: Scene
    config: ScenesConfig
    index: int
    levels: tuple[str, ...]

    def __getitem__(self, level: str) -> "Wordings":
        if level not in self.levels:
            raise KeyError(level)
        return Wordings(self, level)

    def __iter__(self) -> Iterator[str]:
        return iter(self.levels)

    def __len__(self) -> int:
        return len(self.levels)


@dataclasses.dataclass(frozen=True)
class Wordings(Sequence):
    """Differently worded captions of one scene and level."""

    captions: SceneCaptions
    level: str

    def __getitem__(self, variant: int) -> str:
        of = self.captions
        variant = range(len(self))[variant]
        if self.level in _LABELS:
            return write_regions(of.scene, placed=self.level == PLACED_REGIONS)
        draws = (of.config.seed, of.index, LEVELS.index(self.level), variant, _CAPTIONS)
        return write_caption(of.scene, self.level, np.random.default_rng(draws), of.config.keep)

    def __len__(self) -> int:
        return 1 if self.level in _LABELS else self.captions.config.variants

"""What captions and paintings are asked for where nobody says: a model's own settings, else those of the published one.

A UAE folder may hold `inference.json`, {"caption": {...}, "paint": {...}}, with fields of `CaptionSettings` and
`PaintSettings`; what it leaves out is as their dataclasses have it.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from uae_jax.engine import CaptionSettings, PaintSettings
from uae_jax.plain import from_plain
from uae_jax.weights import uae


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Settings of a model."""

    caption: CaptionSettings = CaptionSettings()
    paint: PaintSettings = PaintSettings()

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> "Defaults":
        """Reads them from `UAEWeights.files`.

        Raises:
          ValueError: on unknown fields and values out of range.
        """
        if uae.INFERENCE not in files:
            return cls()
        try:
            stated = json.loads(files[uae.INFERENCE])
        except ValueError as error:
            raise ValueError(f"{uae.INFERENCE}: not JSON ({error})") from None
        return from_plain(cls, stated, uae.INFERENCE)

    @classmethod
    def of(cls, name_or_path: str | os.PathLike) -> "Defaults":
        """Reads those of a UAE folder, without its weights; raises as `from_files`."""
        return cls.from_files(uae.read_files(name_or_path))


def given(settings: Any, **values: Any) -> Any:
    """Replaces the fields of a dataclass for which a value other than None is given."""
    return dataclasses.replace(settings, **{name: value for name, value in values.items() if value is not None})

"""What the recipes of the tiny foundation share: the scene world, and held-out scenes of it."""

from ml_collections import ConfigDict

TRAIN_SEED, HELD_OUT_SEED = 0, 1


def scenes(
    levels: tuple[str, ...] = (),
    weights: tuple[float, ...] = (),
    *,
    seed: int = TRAIN_SEED,
    count: int = 200_000,
    **more,
) -> ConfigDict:
    """Data of the scene world, 64x64 pixels.

    Args:
      levels: of detail that captions are drawn from; none for images alone.
      weights: of the levels.
      seed: of the scenes.
      count: of the scenes.
      **more: fields of `ScenesConfig`.
    """
    scenes = ConfigDict({"count": count, "seed": seed, "size": 64, "levels": levels, **more})
    source = ConfigDict({"kind": "scenes", "captions": levels, "caption_weights": weights, "scenes": scenes})
    return ConfigDict({"sources": [source], "resolution": 64, "with_captions": bool(levels)})


def held_out(
    levels: tuple[str, ...] = (), weights: tuple[float, ...] = (), *, count: int = 10_000, **more
) -> ConfigDict:
    """Scenes that nothing was trained on, always in the same order."""
    data = scenes(levels, weights, seed=HELD_OUT_SEED, count=count, **more)
    data.shuffle = False
    return data

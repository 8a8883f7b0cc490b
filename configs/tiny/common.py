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


def distilled(model: str, seed: int) -> ConfigDict:
    """Self-distillation of a tiny DINO; the families differ in nothing but their size's name and seed."""
    config = ConfigDict({"stage": "self_distillation", "seed": seed})
    config.settings = ConfigDict(
        {
            "model": model,
            "head": {"hidden": 192, "bottleneck": 64, "prototypes": 512},
            "global_views": {"scale": (0.6, 1.0), "strength": 0.1, "blur": 0.1},
            "local_views": {"scale": (0.15, 0.5), "strength": 0.1, "blur": 0.1},
            "momentum": 0.99,
            "momentum_steps": 600,
            "temperature_warmup": 100,
        }
    )
    config.data = scenes(seed=10 + seed)
    config.validation = held_out()
    config.optimiser = ConfigDict({"learning_rate": 1e-3, "schedule": "cosine", "warmup": 100, "weight_decay": 0.05})
    config.steps = 600
    config.batch_size = 64
    config.log_every = 50
    config.evaluate_every = 200
    config.checkpoint_every = 200
    return config

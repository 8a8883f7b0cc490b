"""The tiny CLIP, from nothing, on the scene world.

    uae train --config configs/tiny/clip.py --workdir runs/tiny/clip

It judges paintings and never saw the captioner: its captions are the world's own, of every level of detail but tags,
which say too little to tell one scene from another.
"""

from ml_collections import ConfigDict

from configs.tiny.common import held_out, scenes

LEVELS = ("short", "medium", "long", "exhaustive")
WEIGHTS = (0.1, 0.25, 0.45, 0.2)


def get_config(arg=None):
    del arg
    config = ConfigDict()
    config.stage = "contrastive"
    config.settings = ConfigDict({"model": "new:clip-tiny"})
    config.data = scenes(LEVELS, WEIGHTS)
    config.validation = held_out(LEVELS, WEIGHTS)
    config.optimiser = ConfigDict({"learning_rate": 2e-3, "schedule": "cosine", "warmup": 100, "weight_decay": 0.05})
    config.ema = ConfigDict({"decay": 0.99})
    config.steps = 1500
    config.batch_size = 128
    config.log_every = 50
    config.evaluate_every = 500
    config.checkpoint_every = 500
    return config

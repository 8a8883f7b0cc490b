"""The tiny LongCLIP: the tiny CLIP with 248 text positions, taught to read exhaustive captions to their end.

    uae train --config configs/tiny/longclip.py --workdir runs/tiny/longclip

Needs the run of `clip.py`, in `runs/tiny/clip` or where `clip=` says.
"""

from ml_collections import ConfigDict

from configs.tiny.common import held_out, scenes
from uae_jax.training.configure import parse_arg

LEVELS = ("medium", "long", "exhaustive")
WEIGHTS = (0.15, 0.35, 0.5)


def get_config(arg=None):
    arg = parse_arg(arg, clip="runs/tiny/clip")
    config = ConfigDict()
    config.stage = "contrastive"
    config.settings = ConfigDict({"model": f"{arg.clip}/model", "stretch_positions": True, "short_weight": 0.1})
    config.data = scenes(LEVELS, WEIGHTS, seed=5)  # other scenes than CLIP's
    config.validation = held_out(LEVELS, WEIGHTS)
    config.optimiser = ConfigDict({"learning_rate": 1e-3, "schedule": "cosine", "warmup": 50, "weight_decay": 0.05})
    config.ema = ConfigDict({"decay": 0.99})
    config.steps = 250
    config.batch_size = 128
    config.log_every = 50
    config.evaluate_every = 125
    config.checkpoint_every = 125
    return config

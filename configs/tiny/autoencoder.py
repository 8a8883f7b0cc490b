"""The tiny VAE: 64x64 pixels to 16x16x4 latents, from nothing, on the scene world.

    uae train --config configs/tiny/autoencoder.py --workdir runs/tiny/autoencoder

Two CPU cores.
"""

from ml_collections import ConfigDict

from configs.tiny.common import held_out, scenes


def get_config(arg=None):
    del arg
    config = ConfigDict()
    config.stage = "autoencoder"
    config.settings = ConfigDict({"model": "new:tiny", "l2": 1.0, "l1": 0.02, "kl_weight": 1e-6, "balance": True})
    config.data = scenes()
    config.validation = held_out()
    config.optimiser = ConfigDict({"learning_rate": 4e-3, "schedule": "cosine", "warmup": 100, "clip": 1.0})
    config.ema = ConfigDict({"decay": 0.995})
    config.steps = 6000
    config.batch_size = 16
    config.log_every = 50
    config.evaluate_every = 500
    config.checkpoint_every = 500
    return config

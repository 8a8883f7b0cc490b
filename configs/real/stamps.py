"""Real pictures: the 785 captioned stamps of Tux Paint, many of them photographs.

    launch/fetch_stamps.sh data/stamps
    uae data inspect data/stamps/captions.jsonl --output data/stamps/report
    uae train --config configs/real/stamps.py --workdir runs/stamps

First the tiny VAE learns the pixels of pictures that are no scenes, then the tiny decoder learns to paint them from
their captions. A set this small and varied is learnt by heart at best: it shows that the road is open, not where it
leads. Argument: `data=FOLDER`. About 20 minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from uae_jax.training.configure import parse_arg
from uae_jax.weights.checkpoint import EMBEDDED


def get_config(arg=None):
    arg = parse_arg(arg, data="data/stamps")
    config = ConfigDict()
    config.stages = ("pixels", "paintings")
    config.pixels = _stage("autoencoder", arg.data, steps=1000, batch=16, rate=1e-3)
    config.pixels.settings = ConfigDict({"model": str(EMBEDDED / "tiny/SD3/vae")})
    config.paintings = _stage("pretrain", arg.data, steps=1500, batch=32, rate=5e-4)
    config.paintings.settings = ConfigDict({"model": "tiny", "vae_from": "previous", "token_bucket": 32})
    return config


def _stage(stage: str, folder: str, steps: int, batch: int, rate: float) -> ConfigDict:
    source = ConfigDict({"path": f"{folder}/captions.jsonl", "captions": ("caption",)})
    data = ConfigDict({"sources": [source], "resolution": 64, "flip": 0.5})
    return ConfigDict(
        {
            "stage": stage,
            "data": data,
            "validation": ConfigDict({"sources": [source], "resolution": 64, "shuffle": False}),
            "optimiser": {"learning_rate": rate, "warmup": 50},
            "ema": {"decay": 0.99},
            "steps": steps,
            "batch_size": batch,
            "log_every": 25,
            "evaluate_every": 250,
            "checkpoint_every": 250,
        }
    )

"""Every stage, on the scene world, as short as a run can be that is to be killed now and then.

The argument is the stage's name.
"""

from ml_collections import ConfigDict

SETTINGS = {
    "autoencoder": {"model": "new:tiny"},
    "contrastive": {"model": "new:clip-tiny"},
    "self_distillation": {"model": "new:dinov2-tiny"},
    "caption_sft": {"model": "new:tiny", "encoder": {"mode": "lora", "rank": 2}, "max_tokens": 32, "max_pixels": 1024},
    "pretrain": {"model": "new:tiny"},
}


def get_config(arg=None):
    captions = arg not in ("autoencoder", "self_distillation")
    levels = ("tag", "short") if captions else ()
    side = 64 if arg == "contrastive" else 32  # CLIP's images are of one size
    scenes = {"count": 40, "size": side, "levels": levels}
    return ConfigDict(
        {
            "stage": arg,
            "settings": SETTINGS[arg],
            "data": {
                "sources": [{"kind": "scenes", "scenes": scenes, "captions": levels}],
                "resolution": side,
                "with_captions": captions,
            },
            "optimiser": {"learning_rate": 1e-3, "warmup": 2},
            "ema": {"decay": 0.9},
            "steps": 16,
            "batch_size": 4,
            "accumulate": 2,
            "log_every": 1,
            "checkpoint_every": 2,
        }
    )

"""Every stage, on the scene world, as short as a run can be that is to be killed now and then.

The argument is the stage's name.
"""

from ml_collections import ConfigDict

LORA = {"mode": "lora", "rank": 2}
LOOP = {"model": "tiny", "text": {"max_tokens": 8}, "paint": {"steps": 3, "guidance": 1.0}}
SETTINGS = {
    "autoencoder": {"model": "new:tiny", "balance": True},
    "contrastive": {"model": "new:clip-tiny"},
    "self_distillation": {"model": "new:dinov2-tiny"},
    "region_words": {"model": "new:tiny", "read_by": "language"},
    "caption_sft": {"model": "new:tiny", "encoder": LORA, "max_tokens": 32, "max_pixels": 1024},
    "pretrain": {"model": "new:tiny"},
    "cold_start": {"encoder": LORA, "decoder": LORA, **LOOP},
    "gen_for_understanding": {"encoder": LORA, "group": 2, **LOOP},
    "understanding_for_gen": {"decoder": LORA, "group": 2, "updates": 1, **LOOP},
}


def get_config(arg=None):
    captions = arg not in ("autoencoder", "self_distillation")
    levels = ("regions",) if arg == "region_words" else ("tag", "short") if captions else ()
    side = 64 if arg in ("contrastive", "region_words") else 32  # what CLIP's size, and 4x4 regions, ask for
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

"""Real pictures: the 785 captioned stamps of Tux Paint, many of them photographs. The whole loop, on little.

    launch/fetch_stamps.sh data/stamps
    uae data inspect data/stamps/captions.jsonl --output data/stamps/report
    uae train --config configs/real/stamps.py --workdir runs/stamps
    uae report runs/stamps

First the tiny VAE learns the pixels of pictures that are no scenes, the tiny decoder to paint them from their captions,
and the tiny encoder to caption them; then come the stages of the loop. One picture in ten is held out. A set this small
and varied is learnt by heart at best, by models and judges that have seen nothing but scenes: it shows that the road is
open, not where it leads. Argument: `data=FOLDER`. Some 70 minutes on one CPU core.
"""

from ml_collections import ConfigDict

from uae_jax.stages.flow_grpo_settings import preset
from uae_jax.training.configure import parse_arg
from uae_jax.weights.checkpoint import EMBEDDED

TEXT = {"max_tokens": 40, "max_pixels": 4096}
LORA = {"mode": "lora", "rank": 16, "alpha": 32.0, "existing": "merge"}
LANGUAGE = {**LORA, "frozen": ("vision/.*",)}
LOOP = {"model": "previous", "text": TEXT, "evaluation_steps": 10}


def get_config(arg=None):
    folder = parse_arg(arg, data="data/stamps").data
    config = ConfigDict()
    config.stages = ("pixels", "paintings", "captions", "cold_start", "understanding", "generation")
    config.pixels = _stage("autoencoder", folder, steps=1000, batch=16, rate=1e-3)
    config.pixels.settings = ConfigDict({"model": str(EMBEDDED / "tiny/SD3/vae")})
    config.paintings = _stage("pretrain", folder, steps=700, batch=32, rate=5e-4)
    config.paintings.settings = ConfigDict({"model": "tiny", "vae_from": "previous", "token_bucket": 32})
    config.captions = _stage("caption_sft", folder, steps=600, batch=32, rate=1e-3)
    config.captions.settings = ConfigDict({"model": "previous", "max_pixels": 4096, "max_tokens": 40, "logit_chunk": 0})
    config.cold_start = _stage("cold_start", folder, steps=60, batch=8, rate=2e-4)
    config.cold_start.settings = _loop(encoder=LANGUAGE, decoder=LORA, paint={"steps": 4, "guidance": 3.0})
    config.understanding = _stage("gen_for_understanding", folder, steps=12, batch=12, rate=4e-4)
    config.understanding.settings = _loop(encoder=LANGUAGE, group=8, paint={"steps": 6, "guidance": 3.0})
    config.generation = _stage("understanding_for_gen", folder, steps=12, batch=12, rate=1e-3)
    config.generation.settings = _loop(
        decoder=LORA, **preset("fast", group=8, window=1, paint={"steps": 8, "guidance": 3.0})
    )
    return config


def _loop(**changes) -> ConfigDict:
    return ConfigDict({**LOOP, **changes})


def _stage(stage: str, folder: str, steps: int, batch: int, rate: float) -> ConfigDict:
    def data(part: str, **more) -> ConfigDict:
        source = ConfigDict({"path": f"{folder}/{part}.jsonl", "captions": ("caption",)})
        return ConfigDict({"sources": [source], "resolution": 64, **more})

    every = min(250, steps // 2)
    return ConfigDict(
        {
            "stage": stage,
            "data": data("train", flip=0.5),
            "validation": data("held_out", shuffle=False),
            "optimiser": {"learning_rate": rate, "warmup": min(50, steps // 4)},
            "ema": {"decay": 0.99 if steps > 100 else 0.0},
            "steps": steps,
            "batch_size": batch,
            "log_every": min(25, steps // 6),
            "evaluate_every": every,
            "checkpoint_every": every,
        }
    )

"""The tiny encoder: a terse captioner of scenes, from nothing.

    uae train --config configs/tiny/captioner.py --workdir runs/tiny/captioner

It mostly reads captions that leave something out, as those of an instruction-tuned model do; now and then a complete
one, so that it knows how to say more. A sixth of the rows are text alone, which is how the decoder's prompts are read.
Two stages: first with captions cut short, which takes half the time a step, then with whole ones.
"""

from ml_collections import ConfigDict

from configs.tiny.common import held_out, scenes

LEVELS = ("tag", "short", "medium", "long", "exhaustive")
WEIGHTS = (0.1, 0.25, 0.45, 0.12, 0.08)
OBJECTS = (3.0, 3.0, 2.0, 1.0, 0.5, 0.5)


def get_config(arg=None):
    del arg
    config = ConfigDict()
    config.stages = ("beginnings", "whole")
    config.beginnings = _stage("new:tiny", max_tokens=44, steps=3000, rate=2e-3)
    config.whole = _stage("previous", max_tokens=160, steps=300, rate=5e-4)
    return config


def _stage(model: str, max_tokens: int, steps: int, rate: float) -> ConfigDict:
    config = ConfigDict()
    config.stage = "caption_sft"
    config.settings = ConfigDict(
        {
            "model": model,
            "encoder": {"mode": "full"},
            "text_only": 1 / 6,
            "max_tokens": max_tokens,
            "max_pixels": 4096,
            "logit_chunk": 0,
        }
    )
    config.data = scenes(LEVELS, WEIGHTS, objects=OBJECTS)
    config.validation = held_out(LEVELS, WEIGHTS, objects=OBJECTS)
    config.optimiser = ConfigDict({"learning_rate": rate, "schedule": "cosine", "warmup": 100, "weight_decay": 0.01})
    config.ema = ConfigDict({"decay": 0.998})
    config.steps = steps
    config.batch_size = 48
    config.log_every = 50
    config.evaluate_every = 1000
    config.checkpoint_every = 500
    return config

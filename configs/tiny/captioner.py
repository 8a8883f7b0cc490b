"""The tiny encoder: a terse captioner of scenes, from nothing.

    uae train --config configs/tiny/captioner.py --workdir runs/tiny/captioner

First it learns to name what it sees, from tags of one or two objects, where every other word is a colour or a shape.
Then it reads captions of every length, cut short, and last whole ones. Most of them leave something out, as those of an
instruction-tuned model do; now and then there is a complete one, so that it knows how to say more. A sixth of the rows
are text alone, which is how the decoder's prompts are read.
"""

from ml_collections import ConfigDict

from configs.tiny.common import held_out, scenes

LEVELS = ("tag", "short", "medium", "long", "exhaustive")
WEIGHTS = (0.1, 0.25, 0.45, 0.12, 0.08)
OBJECTS = (3.0, 3.0, 2.0, 1.0, 0.5, 0.5)
FEW = (4.0, 1.0, 0.0, 0.0, 0.0, 0.0)


def get_config(arg=None):
    del arg
    config = ConfigDict()
    config.stages = ("names", "beginnings", "whole")
    config.names = _stage("new:tiny", 16, steps=1200, rate=2e-3, levels=("tag",), weights=(1.0,), objects=FEW)
    config.names.settings.text_only = 0.0
    config.beginnings = _stage("previous", 44, steps=1500, rate=1.5e-3)
    config.whole = _stage("previous", 160, steps=300, rate=5e-4)
    return config


def _stage(model: str, max_tokens: int, steps: int, rate: float, levels=LEVELS, weights=WEIGHTS, objects=OBJECTS):
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
    config.data = scenes(levels, weights, objects=objects)
    config.validation = held_out(levels, weights, objects=objects)
    config.optimiser = ConfigDict({"learning_rate": rate, "schedule": "cosine", "warmup": 100, "weight_decay": 0.01})
    config.ema = ConfigDict({"decay": 0.998})
    config.steps = steps
    config.batch_size = 48
    config.log_every = 50
    config.evaluate_every = 400
    config.checkpoint_every = 400
    return config

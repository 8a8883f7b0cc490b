"""The tiny encoder: a terse captioner of scenes, from nothing.

    uae train --config configs/tiny/captioner.py --workdir runs/tiny/captioner

First its vision tower learns to see, from labels of the regions of an image. Then the language model learns to look,
at pictures of one large object: in small ones among others it takes far longer to find that words and images have to do
with each other. Then its lower half learns where things stand, from labels again, for the tower knows relative places
only; and its upper half to read that off, again of one large object. Then come complete captions, cut short, and last
such as an instruction-tuned model writes: whole ones, most of which leave something out. Both once more, from a high
rate down again, make it surer of what it says. A sixth of the rows are text alone, which is how the decoder's prompts
are read; at the end its states learn to hold the words that they stand at, or no decoder is told of shapes. Some 65
minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.tiny.common import held_out, scenes

LEVELS = ("tag", "short", "medium", "long", "exhaustive")
WEIGHTS = (0.1, 0.25, 0.45, 0.12, 0.08)
FULL = (0.02, 0.03, 0.15, 0.2, 0.6)  # of most objects everything is said
LAST = (0.02, 0.15, 0.55, 0.18, 0.1)  # tags would be all that a greedy captioner says, if they stayed the likeliest
SEEN = (3.0, 3.0, 3.0, 1.5, 1.0, 0.5)  # objects of an image, while it learns to see
FEW = (2.0, 3.0, 2.0, 1.0, 0.5, 0.5)
OBJECTS = (3.0, 3.0, 2.0, 1.0, 0.5, 0.5)
ONE, LARGE = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def get_config(arg=None):
    del arg
    config = ConfigDict()
    config.stages = ("seeing", "looking", "placing", "reading", "complete", "whole", "revision", "final", "keeping")
    config.seeing = _labels("regions", 4, steps=5000, rate=3e-3)
    config.looking = _captions(30, steps=500, rate=2e-3, objects=ONE, object_sizes=LARGE)
    config.looking.settings.text_only = 0.0
    config.placing = _labels("placed_regions", 6, steps=700, rate=1.5e-3)
    config.placing.settings.update({"model": "previous", "read_by": "language"})
    config.reading = _captions(40, steps=300, rate=2e-3, objects=ONE, object_sizes=LARGE, weights=FULL)
    config.reading.settings.text_only = 0.0
    config.complete = _captions(80, steps=1000, rate=2e-3, objects=FEW, weights=FULL)
    config.whole = _captions(160, steps=400, rate=7e-4, weights=LAST)
    config.revision = _captions(160, steps=900, rate=1.5e-3, weights=FULL)
    config.final = _captions(160, steps=350, rate=7e-4, weights=LAST)
    config.keeping = _captions(160, steps=350, rate=1e-3, weights=LAST)
    config.keeping.settings.update({"keep_words": 0.5, "text_only": 1 / 3})
    return config


def _labels(field: str, max_words: int, steps: int, rate: float) -> ConfigDict:
    config = ConfigDict({"stage": "region_words"})
    config.settings = ConfigDict({"model": "new:tiny", "max_words": max_words, "max_pixels": 4096})
    config.data = scenes((field,), (1.0,), objects=SEEN)
    config.validation = held_out((field,), (1.0,), objects=SEEN)
    config.optimiser = _optimiser(rate)
    config.ema = ConfigDict({"decay": 0.998})
    return _run(config, steps, every=1000)


def _captions(max_tokens: int, steps: int, rate: float, objects=OBJECTS, weights=WEIGHTS, **more) -> ConfigDict:
    config = ConfigDict({"stage": "caption_sft"})
    config.settings = ConfigDict(
        {
            "model": "previous",
            "encoder": {"mode": "full"},
            "text_only": 1 / 6,
            "max_tokens": max_tokens,
            "max_pixels": 4096,
            "logit_chunk": 0,
        }
    )
    config.data = scenes(LEVELS, weights, objects=objects, **more)
    config.validation = held_out(LEVELS, weights, objects=objects, **more)
    config.optimiser = _optimiser(rate)
    config.ema = ConfigDict({"decay": 0.998})
    return _run(config, steps, every=400)


def _optimiser(rate: float) -> ConfigDict:
    return ConfigDict({"learning_rate": rate, "schedule": "cosine", "warmup": 100, "weight_decay": 0.01})


def _run(config: ConfigDict, steps: int, every: int) -> ConfigDict:
    config.steps = steps
    config.batch_size = 32
    config.log_every = 50
    config.evaluate_every = every
    config.checkpoint_every = every
    return config

"""The tiny decoder and its projector: flow matching on captioned scenes, from nothing.

    uae data encode --config configs/tiny/decoder.py --output runs/tiny/encoded/train.array_record
    uae data encode --config configs/tiny/decoder.py:held_out --output runs/tiny/encoded/held_out.array_record
    uae train --config configs/tiny/decoder.py:encoded=runs/tiny/encoded --workdir runs/tiny/decoder

Needs the runs of `captioner.py` and `autoencoder.py`, in `runs/tiny/` or where `captioner=` and `autoencoder=` say.
Most scenes hold one or two objects and most captions are short, so that long ones are left to learn. Not good enough
yet: colours come out right, shapes, places and backgrounds do not, and at high noise captions are not heeded. Without
`encoded`, latents and hidden states are computed anew in every step.
"""

from ml_collections import ConfigDict

from configs.tiny.common import held_out, scenes
from uae_jax.training.configure import parse_arg

LEVELS = ("tag", "short", "medium", "long")
WEIGHTS = (0.15, 0.3, 0.45, 0.1)
OBJECTS = (6.0, 3.0, 1.5, 0.6, 0.3, 0.2)


def get_config(arg=None):
    arg = parse_arg(
        arg,
        encoded="",
        held_out=False,
        captioner="runs/tiny/captioner/8_final",
        autoencoder="runs/tiny/autoencoder",
    )
    config = ConfigDict()
    config.stage = "pretrain"
    config.settings = ConfigDict(
        {
            "model": "new:tiny",
            "encoder_from": f"{arg.captioner}/model",
            "vae_from": f"{arg.autoencoder}/model",
            "precomputed": bool(arg.encoded),
            "token_bucket": 32,
            "max_tokens": 77,  # with the template around it 96 tokens, so that no batch is longer for the sake of a few
            "pictures": 16,
        }
    )
    config.data = scenes(LEVELS, WEIGHTS, objects=OBJECTS, count=60_000)
    config.validation = held_out(LEVELS, WEIGHTS, objects=OBJECTS, count=512)
    if arg.held_out:  # to be encoded
        config.data = config.validation
    if arg.encoded:
        config.data = _encoded(f"{arg.encoded}/train.array_record")
        config.validation = _encoded(f"{arg.encoded}/held_out.array_record")
        config.validation.shuffle = False
    config.optimiser = ConfigDict({"learning_rate": 1e-3, "schedule": "cosine", "warmup": 200})
    config.ema = ConfigDict({"decay": 0.998})
    config.steps = 4500
    config.batch_size = 32
    config.log_every = 50
    config.evaluate_every = 1500
    config.checkpoint_every = 500
    return config


def _encoded(file: str) -> ConfigDict:
    return ConfigDict({"sources": [ConfigDict({"path": file})], "resolution": 0})

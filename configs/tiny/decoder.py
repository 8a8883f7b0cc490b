"""The tiny decoder and its projector: flow matching on captioned scenes, from nothing.

    for part in full one several told unsaid full_held_out one_held_out; do
      uae data encode --config configs/tiny/decoder.py:encode=$part --output runs/tiny/encoded/$part.array_record
    done
    uae train --config configs/tiny/decoder.py:encoded=runs/tiny/encoded --workdir runs/tiny/decoder

Needs the runs of `captioner.py` and `autoencoder.py`, in `runs/tiny/` or where `captioner=` and `autoencoder=` say.
First come scenes of one object, a large one as a rule, of which everything is said, at high noise: what a caption says
of shapes is worth most at levels of 0.8 to 0.95 for large objects, of 0.7 to 0.8 for small ones, and nothing below 0.6,
where the latent shows it (`uae_jax/stages/balance.py` says what else it takes). Then all sizes, shorter captions, and
several objects, but few of the long ones; and more of the same, for as long as it helps, and it does. On two CPU cores
two hours and a quarter.

What "broad" adds, long captions of several objects and captions that name no colour, in seven times as many examples,
is for an accelerator: one H200 took eleven milliseconds a step, and was stopped after 11,300 of the 12,000, at a
hundredth of the rate. Its 200,000 samples were encoded beforehand and kept on the device; read from files, they come
slower. Without `encoded`, latents and hidden states are computed anew in every step.
"""

from ml_collections import ConfigDict

from configs.tiny.common import held_out, scenes
from uae_jax.training.configure import parse_arg

LEVELS = ("tag", "short", "medium", "long")
ONE_OBJECT = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
SETS = {
    "full": {
        "weights": (0.02, 0.03, 0.3, 0.65),
        "objects": ONE_OBJECT,
        "object_sizes": (0.1, 0.3, 0.6),
        "count": 40_000,
    },
    "one": {"weights": (0.1, 0.2, 0.4, 0.3), "objects": ONE_OBJECT, "count": 40_000},
    "several": {"weights": (0.1, 0.25, 0.5, 0.15), "objects": (5.0, 3.0, 1.5, 0.7, 0.4, 0.3), "count": 40_000},
    "told": {"weights": (0.02, 0.08, 0.35, 0.55), "objects": (3.0, 3.0, 2.0, 1.0, 0.5, 0.5), "count": 150_000},
    "unsaid": {
        "weights": (0.1, 0.4, 0.4, 0.1),
        "objects": (5.0, 3.0, 1.5, 0.5, 0.25, 0.25),
        "keep": 0.6,
        "count": 100_000,
    },
}


def get_config(arg=None):
    arg = parse_arg(
        arg,
        encoded="",
        encode="",
        captioner="runs/tiny/captioner/9_keeping",
        autoencoder="runs/tiny/autoencoder",
    )
    foundation = {"encoder_from": f"{arg.captioner}/model", "vae_from": f"{arg.autoencoder}/model"}
    if arg.encode:  # one of the sets
        name, _, part = arg.encode.partition("_")
        config = _stage({name: 1.0}, {"model": "new:tiny", **foundation}, "", steps=1, rate=0.0)
        config.data = config.validation if part == "held_out" else config.data
        return config
    config = ConfigDict({"stages": ("full", "more", "mixed", "longer", "broad")})
    config.full = _stage({"full": 1.0}, {"model": "new:tiny", **foundation}, arg.encoded, steps=1800, rate=6e-3)
    config.full.settings.update({"logit_mean": 1.0, "logit_std": 1.3})
    config.more = _stage({"full": 1.0}, {"model": "previous"}, arg.encoded, steps=2600, rate=4e-3)
    config.more.settings.update({"logit_mean": 1.3, "logit_std": 1.0})
    mixed = {"one": 0.45, "several": 0.3, "full": 0.25}
    config.mixed = _stage(mixed, {"model": "previous"}, arg.encoded, steps=3300, rate=4e-3)
    mixed = {"one": 0.4, "several": 0.3, "full": 0.3}
    config.longer = _stage(mixed, {"model": "previous"}, arg.encoded, steps=6000, rate=3.5e-3)
    mixed = {"one": 0.2, "several": 0.2, "full": 0.2, "told": 0.25, "unsaid": 0.15}
    config.broad = _stage(mixed, {"model": "previous"}, arg.encoded, steps=12_000, rate=4e-3)
    config.broad.batch_size = 256
    config.broad.settings.dtype = "bfloat16"
    for stage in (config.more, config.mixed, config.longer, config.broad):
        stage.ema.decay = 0.995
    return config


def _stage(shares: dict[str, float], models: dict, encoded: str, steps: int, rate: float) -> ConfigDict:
    """Training on a mixture of sets; the first of them is also what is looked at."""
    config = ConfigDict({"stage": "pretrain"})
    config.settings = ConfigDict(
        {
            **models,
            "precomputed": bool(encoded),
            "token_bucket": 32,
            "max_tokens": 77,  # with the template around it 96 tokens, so that no batch is longer for the sake of a few
            "logit_mean": 0.9,
            "logit_std": 1.2,
            "evaluation_sigmas": (0.3, 0.5, 0.7, 0.9, 0.97, 0.999),
            "pictures": 16,
        }
    )
    first = next(iter(shares))
    if encoded:
        config.data = _encoded(encoded, shares)
        config.validation = _encoded(encoded, {f"{first}_held_out": 1.0})
        config.validation.shuffle = False
    else:
        parts = {name: scenes(LEVELS, **SETS[name]) for name in shares}
        config.data = parts[first]
        config.data.sources = [parts[name].sources[0] for name in shares]
        for source, share in zip(config.data.sources, shares.values(), strict=True):
            source.weight = share
        config.validation = held_out(LEVELS, **{**SETS[first], "count": 512})
    config.optimiser = ConfigDict(
        {"kind": "muon", "learning_rate": rate, "b2": 0.98, "schedule": "cosine", "warmup": 100}
    )
    config.ema = ConfigDict({"decay": 0.99})
    config.steps = steps
    config.batch_size = 32
    config.log_every = 50
    config.evaluate_every = 500
    config.checkpoint_every = 200
    return config


def _encoded(folder: str, shares: dict[str, float]) -> ConfigDict:
    sources = [ConfigDict({"path": f"{folder}/{name}.array_record", "weight": share}) for name, share in shares.items()]
    return ConfigDict({"sources": sources, "resolution": 0})

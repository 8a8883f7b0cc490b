"""All four stages on the embedded tiny model and the scene world, as short as they can be and still show something.

    uae demo --workdir runs/demo

or, without the evaluation and the report, `uae train --config uae_jax/demo/config.py --workdir runs/demo`.
`config.py:steps=10` gives every stage so many steps. `configs/` has the same stages at lengths that are meant for
research.
"""

from ml_collections import ConfigDict

from uae_jax.training.configure import parse_arg

_LEVELS, _WEIGHTS = ("medium", "long", "exhaustive"), (0.2, 0.4, 0.4)
_TOKENS = 96  # of a caption: the encoder begins with some thirty, and time is short
_GUIDANCE = 1.0  # none: half the work of painting, and what the decoder learns by reinforcement shows without it
_LORA = {"mode": "lora", "rank": 16, "alpha": 32.0, "existing": "merge"}


def get_config(arg=None):
    given = parse_arg(arg, steps=0).steps
    config = ConfigDict({"stages": ("pretrain", "cold_start", "understanding", "generation")})
    config.pretrain = _stage("pretrain", "tiny", captions=True, steps=given or 30, batch=32, rate=3e-4)
    config.pretrain.settings.update({"max_tokens": _TOKENS, "pictures": 8})
    config.cold_start = _stage("cold_start", "previous", captions=True, steps=given or 10, batch=8, rate=2e-4)
    config.cold_start.settings.update(
        _loop({"encoder": {**_LORA, "frozen": ("vision/.*",)}, "decoder": _LORA, "paint": _paint(4)})
    )
    config.understanding = _stage(
        "gen_for_understanding", "previous", captions=False, steps=given or 14, batch=6, rate=5e-4
    )
    config.understanding.settings.update(
        _loop({"encoder": {**_LORA, "frozen": ("vision/.*",)}, "group": 8, "kl": 5e-2, "paint": _paint(6)})
    )
    config.generation = _stage(
        "understanding_for_gen", "previous", captions=False, steps=given or 8, batch=6, rate=6e-4
    )
    config.generation.settings.update(_loop({"decoder": _LORA, **_nft()}))
    config.understanding.evaluate_every = max(config.understanding.steps // 2, 1)  # captions grow: look twice
    return config


def _nft() -> dict:
    from uae_jax.stages.flow_grpo_settings import preset

    return preset("nft", group=8, paint=_paint(8))


def _paint(steps: int) -> dict:
    return {"steps": steps, "guidance": _GUIDANCE}


def _loop(settings: dict) -> dict:
    more = {"text": {"max_tokens": _TOKENS, "max_pixels": 4096}, "evaluation_steps": 10, "scene_scores": True}
    return {**more, **settings}


def _stage(stage: str, model: str, *, captions: bool, steps: int, batch: int, rate: float) -> ConfigDict:
    return ConfigDict(
        {
            "stage": stage,
            "settings": {"model": model},
            "data": _scenes(20, captions, shuffle=True),
            "validation": _scenes(1, captions, shuffle=False),
            "optimiser": {"learning_rate": rate, "warmup": 5},
            "steps": steps,
            "batch_size": batch,
            "log_every": 5,
            "evaluate_every": steps,
            "evaluation_batches": 2,
            "checkpoint_every": max(steps // 2, 1),
        }
    )


def _scenes(seed: int, captions: bool, shuffle: bool) -> ConfigDict:
    levels = _LEVELS if captions else ()
    source = {"kind": "scenes", "scenes": {"count": 20_000, "seed": seed, "size": 64, "levels": levels}}
    source |= {"captions": levels, "caption_weights": _WEIGHTS} if captions else {}
    return ConfigDict({"sources": [source], "resolution": 64, "with_captions": captions, "shuffle": shuffle})

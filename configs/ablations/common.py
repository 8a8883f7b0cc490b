"""What the ablations share: the loop that each arm of them changes in one place.

A file beside this one is one question. `ARMS` names its answers to choose from, and how each is measured where that
is not as it was trained, see `uae_jax.tiny.figures.Look`; the first is what the others are compared with, or what
`AGAINST` says. `get_config("arm=NAME,seed=0,steps=120")` trains one: by default both reinforcement stages from the
embedded model, of `steps` each; where a question can be put to one of them, `stage=understanding` or
`stage=generation` trains it alone. `uae bench ablate` runs them all and makes the table. All of them paint without
guidance, in training and when they are measured: it takes half the work, and reinforcement of the decoder shows.
"""

from ml_collections import ConfigDict

from configs import cold_start, gen_for_understanding, pretrain, sizes, understanding_for_gen

STAGES = {
    "pretrain": pretrain,
    "cold_start": cold_start,
    "understanding": gen_for_understanding,
    "generation": understanding_for_gen,
}
LOOP = ("understanding", "generation")


def read(arg, arms, **more):
    """Options of an ablation: arm, seed, steps, and more with their defaults."""
    options = sizes.read(arg, {"tiny": "tiny"}, arm=next(iter(arms)), steps=120, **more)
    if options.arm not in arms:
        raise ValueError(f"arm is {options.arm!r}, wanted one of {', '.join(arms)}")
    return options


def read_loop(arg, arms):
    """Options of an ablation of the loop, or of one of its stages: those of `read`, and `names` of the stages."""
    options = read(arg, arms, stage="")
    if options.stage not in ("", *LOOP):
        raise ValueError(f"stage is {options.stage!r}, wanted one of {', '.join(LOOP)}, or none for both")
    options.names = (options.stage,) if options.stage else LOOP
    return options


def chain(options, names, **settings) -> ConfigDict:
    """Stages one after the other, with these settings changed in each; none spends more than a third in warm-up."""
    config = unguided(sizes.chain(options, [(name, STAGES[name]) for name in names], options.steps))
    for name in names:
        config[name].optimiser.warmup = min(config[name].optimiser.warmup, max(options.steps // 3, 1))
        config[name].settings.update(ConfigDict(settings))
    return config


def unguided(config: ConfigDict) -> ConfigDict:
    """Stages that paint without guidance, where they paint."""
    for name in config.stages:
        if "paint" in config[name].settings:
            config[name].settings.paint.guidance = 1.0
    return config

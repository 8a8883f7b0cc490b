"""Controls of the reinforcement stages: as many updates of further supervised training. Tiny size.

    uae train --config configs/control.py:of=gen_for_understanding --workdir runs/control_g4u
    uae train --config configs/control.py:of=understanding_for_gen --workdir runs/control_u4g
    python -m uae_jax.tiny.compare --treated runs/g4u --control runs/control_g4u

What a stage of reinforcement gains may be owed to its updates, not to its reward: here the same parameters are trained,
at the same rate, on scenes of the same seed, with captions of the world's own in place of a reward. By default those
that the tower was trained on before, terse ones of the encoder and short ones of the decoder; `rich=True` takes all
levels of detail, which tells the model what reinforcement has to find out by itself.
"""

from configs import gen_for_understanding, sizes, understanding_for_gen
from configs.tiny import captioner, decoder

STAGES = {
    "gen_for_understanding": (gen_for_understanding, captioner.LEVELS, captioner.LAST),
    "understanding_for_gen": (understanding_for_gen, decoder.LEVELS, decoder.SETS["several"]["weights"]),
}
SAME = ("optimiser", "ema", "steps", "batch_size", "log_every", "evaluate_every", "checkpoint_every")


def get_config(arg=None):
    options = sizes.read(arg, {"tiny": "tiny"}, of="gen_for_understanding", steps=120, rich=False)
    if options.of not in STAGES:
        raise ValueError(f"of is {options.of!r}, wanted one of {', '.join(STAGES)}")
    module, levels, weights = STAGES[options.of]
    if options.rich:
        levels, weights = sizes.LEVELS, sizes.WEIGHTS
    treated = module.experiment(options, options.steps)
    settings = {"model": options.model}
    if options.of == "gen_for_understanding":
        stage = "caption_sft"
        settings |= {"encoder": treated.settings.encoder, "text_only": 0.0, **treated.settings.text}
    else:
        stage = "pretrain"
        settings |= {"decoder": treated.settings.decoder, "projector": {"mode": "frozen"}}
        settings |= {"max_tokens": treated.settings.text.max_tokens}
    data = sizes.data(options, captions=True, levels=levels, weights=weights)
    return sizes.run(options, stage, settings, data, **{name: treated[name] for name in SAME if name in treated})

"""Both reinforcement stages in turn, round after round: does what one learns help the other?

    uae train --config configs/alternate.py --workdir runs/alternate
    uae train --config configs/alternate.py:size=full,data=data/train,rounds=3,steps=300 --workdir runs/alternate

`rounds` of `steps` each of `gen_for_understanding` and `understanding_for_gen`. Every stage starts from the last one's
result, with other pictures in every round, and its divergence is from where it began. Compare the held-out
`unified` score at the end of each stage (`uae report`). Hardware: see `configs/sizes.py`.
"""

from configs import gen_for_understanding, sizes, understanding_for_gen


def get_config(arg=None):
    models = {"tiny": "tiny", "small": "runs/cold_start/model", "full": "runs/cold_start/model"}
    options = sizes.read(arg, models, rounds=2, steps=0)
    if options.rounds < 1:
        raise ValueError(f"rounds is {options.rounds}, wanted at least 1")
    steps = options.steps or (60 if options.size == "tiny" else 500)
    config = sizes.chain(options, rounds(options.rounds), steps)
    for number in range(1, options.rounds + 1):  # one decoder is painted with in one way
        guidance = config[f"generation_{number}"].settings.paint.guidance
        config[f"understanding_{number}"].settings.paint.guidance = guidance
    return config


def rounds(count: int):
    """Names and files of the stages of so many rounds."""
    both = (("understanding", gen_for_understanding), ("generation", understanding_for_gen))
    return [(f"{name}_{number}", stage) for number in range(1, count + 1) for name, stage in both]

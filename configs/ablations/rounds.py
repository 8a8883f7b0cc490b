"""One round of both reinforcement stages, or several shorter ones: does what one learns help the other?

    uae train --config configs/ablations/rounds.py:arm=four --workdir runs/four_rounds
    uae bench ablate --workdir runs/ablations --only rounds

The same number of updates of either stage, and of these in warm-up, in one, two and four rounds; see
`configs/alternate.py`.
"""

from configs import alternate, sizes
from configs.ablations import common

ARMS = {"one": {}, "two": {}, "four": {}}
COUNTS = {"two": 2, "four": 4}


def get_config(arg=None):
    options = common.read(arg, ARMS)
    if options.arm == "one":
        return common.chain(options, common.LOOP)
    count = COUNTS[options.arm]
    config = common.unguided(sizes.chain(options, alternate.rounds(count), max(options.steps // count, 1)))
    for name in config.stages:  # every round has a rise of its own: all of them together as long as the one
        config[name].optimiser.warmup = max(config[name].optimiser.warmup // count, 1)
    return config

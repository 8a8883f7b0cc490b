"""The order of the stages, and each of them left out: which of them does it take?

    uae train --config configs/ablations/order.py:arm=without_cold_start --workdir runs/without_cold_start
    uae bench ablate --workdir runs/ablations --only order

All four stages one after the other, from the embedded model, of as many steps each; one of them left out; both
reinforcement stages the other way round. An arm without a stage has made fewer updates.
"""

from configs.ablations import common

ALL = tuple(common.STAGES)
ARMS = {"all": {}, **{f"without_{name}": {} for name in ALL}, "generation_first": {}}


def get_config(arg=None):
    options = common.read(arg, ARMS)
    if options.arm == "generation_first":
        return common.chain(options, (*ALL[:2], *reversed(common.LOOP)))
    return common.chain(options, tuple(name for name in ALL if options.arm != f"without_{name}"))

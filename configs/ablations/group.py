"""How many captions or paintings make a group: are more of each image worth fewer images?

    uae train --config configs/ablations/group.py:arm=2 --workdir runs/group_2
    uae bench ablate --workdir runs/ablations --only group

Groups of 8, 2, 4, 16. As many captions, or paintings, are made in each step whatever the group, of fewer images where
it is larger, so that all arms cost the same.
"""

from configs.ablations import common

ARMS = {"8": {}, "2": {}, "4": {}, "16": {}}


def get_config(arg=None):
    options = common.read_loop(arg, ARMS)
    config, group = common.chain(options, options.names), int(options.arm)
    for name in options.names:
        config[name].batch_size = config[name].batch_size * config[name].settings.group // group
        config[name].settings.group = group
    return config

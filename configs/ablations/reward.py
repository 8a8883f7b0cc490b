"""Which scorer rewards: is a gain one in the eyes of those that rewarded nothing, too?

    uae train --config configs/ablations/reward.py:arm=dinov2 --workdir runs/dinov2
    uae bench ablate --workdir runs/ablations --only reward

CLIP alone, as in the paper, LongCLIP, DINOv2, DINOv3, or CLIP and DINOv2 in equal parts. All four are computed in every
arm; those of weight 0 are held out, and the world's own scores of captions and paintings are no scorer's at all.
"""

from configs.ablations import common
from uae_jax.rewards.reconstruction import UNIFIED

ARMS = {"clip": {}, "longclip": {}, "dinov2": {}, "dinov3": {}, "clip_dinov2": {}}


def get_config(arg=None):
    options = common.read_loop(arg, ARMS)
    rewarded = options.arm.split("_")
    reward = tuple({"name": name, "weight": float(name in rewarded)} for name in UNIFIED)
    return common.chain(options, options.names, reward=reward)

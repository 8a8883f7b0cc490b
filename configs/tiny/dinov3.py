"""The tiny DINOv3, from nothing, on images of the scene world alone.

    uae train --config configs/tiny/dinov3.py --workdir runs/tiny/dinov3

Global crops keep most of an image and its colours nearly as they are, so that what is where tells images apart.
"""

from configs.tiny.common import distilled


def get_config(arg=None):
    del arg
    return distilled("new:dinov3-tiny", seed=3)

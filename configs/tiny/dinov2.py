"""The tiny DINOv2, from nothing, on images of the scene world alone.

    uae train --config configs/tiny/dinov2.py --workdir runs/tiny/dinov2

Global crops keep most of an image and its colours nearly as they are, so that what is where tells images apart.
"""

from configs.tiny.common import distilled


def get_config(arg=None):
    del arg
    return distilled("new:dinov2-tiny", seed=2)

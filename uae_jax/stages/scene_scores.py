"""Held-out captions and paintings of the scene world, judged by what is in them rather than by how alike they are.

The scene is read off the original image by the detector, which is exact on clean images, so nothing but images and
captions is needed.
"""

from collections.abc import Sequence

import numpy as np

from uae_jax.data import scenes as world
from uae_jax.data.scenes import CaptionScore


def judge(originals: Sequence[np.ndarray], captions: Sequence[str], painted: Sequence[np.ndarray]) -> dict[str, float]:
    """Scores a batch.

    Args:
      originals: u8[S, S, 3] each, of the scene world.
      captions: what was written of them.
      painted: u8[S, S, 3] each, what was painted from the captions.

    Returns:
      "attribute_precision" and "attribute_recall" of the captions, pooled over the batch; "grammatical", a fraction;
      "caption_accuracy", how often a painting is all that its caption asks for and nothing else; "painting_accuracy",
      the mean of count, attributes, binding and background of a painting against the original scene.
    """
    truths = [world.detect(image) for image in originals]
    claims = [world.parse_caption(caption) for caption in captions]
    said = sum((world.score_caption(c, truth) for c, truth in zip(claims, truths, strict=True)), CaptionScore())
    asked = [world.score_painting_of_caption(image, claim) for image, claim in zip(painted, claims, strict=True)]
    meant = [world.score_painting(image, truth) for image, truth in zip(painted, truths, strict=True)]
    fields = ("count", *world.ATTRIBUTES, "binding", "background")
    return {
        "attribute_precision": said.attribute.precision,
        "attribute_recall": said.attribute.recall,
        "grammatical": float(np.mean([claim.grammatical for claim in claims])),
        "caption_accuracy": float(np.mean([score.accuracy for score in asked])),
        "painting_accuracy": float(np.mean([[getattr(score, name) for name in fields] for score in meant])),
    }

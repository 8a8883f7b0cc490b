"""Held-out captions and paintings of the scene world, judged by what is in them rather than by how alike they are.

The scene is read off the original image by the detector, which is exact on clean images, so nothing but images and
captions is needed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from uae_jax.data import scenes as world

_PAINTED = ("count", *world.ATTRIBUTES, "binding", "background")


def judge(originals: Sequence[np.ndarray], captions: Sequence[str], painted: Sequence[np.ndarray]) -> dict[str, float]:
    """Scores a batch: `by_scene`, pooled."""
    return pooled(by_scene(originals, captions, painted))


def by_scene(
    originals: Sequence[np.ndarray], captions: Sequence[str], painted: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Scores each of N scenes by itself.

    Args:
      originals: u8[S, S, 3] each, of the scene world.
      captions: what was written of them.
      painted: u8[S, S, 3] each, what was painted from the captions.

    Returns:
      f64[N, 2] each, a numerator and a denominator, see `pooled`. "attribute_precision" and "attribute_recall" of the
      captions; "grammatical"; "prompt_accuracy", whether a painting is all that its caption asks for and nothing else;
      "painting_accuracy", the mean of count, attributes, binding and background of a painting against the original
      scene.
    """
    truths = [world.detect(image) for image in originals]
    claims = [world.parse_caption(caption) for caption in captions]
    said = [world.score_caption(c, truth).attribute for c, truth in zip(claims, truths, strict=True)]
    found = [world.detect(image) for image in painted]
    asked = [world.score_painting_of_caption(scene, claim) for scene, claim in zip(found, claims, strict=True)]
    meant = [world.score_painting(scene, truth) for scene, truth in zip(found, truths, strict=True)]
    return {
        "attribute_precision": np.array([(tally.right, tally.claimed) for tally in said], np.float64),
        "attribute_recall": np.array([(tally.found, tally.present) for tally in said], np.float64),
        "grammatical": of_each([claim.grammatical for claim in claims]),
        "prompt_accuracy": of_each([score.accuracy for score in asked]),
        "painting_accuracy": of_each([np.mean([getattr(score, name) for name in _PAINTED]) for score in meant]),
    }


def of_each(values: Sequence[float]) -> np.ndarray:
    """One number of each scene, as ratios whose pooled value is the mean: f64[N, 2]."""
    values = np.asarray(values, np.float64)
    return np.stack([values, np.ones_like(values)], axis=1)


def pooled(ratios: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The sum of numerators over that of denominators; 1 where there was nothing to be right or wrong about."""
    sums = {name: ratio.sum(axis=0) for name, ratio in ratios.items()}
    return {name: float(above / below) if below else 1.0 for name, (above, below) in sums.items()}

"""How sure a mean is, of images, questions or prompts."""

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 10_000
_AT_ONCE = 1_000_000  # values that are drawn at a time
_NORMAL = 1.959964  # 97.5% quantile


def mean_interval(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95% interval of a mean by the percentile bootstrap (Efron and Tibshirani 1993, chapter 13).

    Args:
      values: f[N], at least one; differences of pairs for a paired comparison.
      draws: of N values with replacement.
      seed: of the draws.
    """
    return stratified_interval([values], draws=draws, seed=seed)


def stratified_interval(
    groups: Sequence[Sequence[float]],
    weights: Sequence[Sequence[float]] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """95% interval of the plain mean of groups' means, by the percentile bootstrap within each group.

    Groups are not drawn anew: a benchmark's tasks are chosen, and its score is the mean over these.

    Args:
      groups: values, at least one in each.
      weights: of each value in its group's mean; none: all alike.
      draws: of as many values of each group, with replacement.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    means = [
        _drawn_means(np.asarray(values, np.float64), None if weights is None else np.asarray(weights[i]), draws, rng)
        for i, values in enumerate(groups)
    ]
    low, high = np.percentile(np.mean(means, axis=0), [2.5, 97.5])
    return float(low), float(high)


def _drawn_means(values: np.ndarray, weights: np.ndarray | None, draws: int, rng: np.random.Generator) -> np.ndarray:
    """f[N] -> f[draws]."""
    means, rows = [], max(_AT_ONCE // len(values), 1)
    for start in range(0, draws, rows):
        places = rng.integers(0, len(values), (min(rows, draws - start), len(values)))
        if weights is None:
            means.append(values[places].mean(axis=1))
        else:
            means.append((values * weights)[places].sum(axis=1) / weights[places].sum(axis=1))
    return np.concatenate(means)


def proportion_interval(hits: int, count: int) -> tuple[float, float]:
    """95% interval of a share by Wilson's score (1927), which says something of few trials, and of all or none right.

    The bootstrap calls 20 of 20 certain.
    """
    share, spread = hits / count, _NORMAL**2 / count
    middle = share + spread / 2
    half = _NORMAL * math.sqrt(share * (1 - share) / count + _NORMAL**2 / (4 * count**2))
    return max((middle - half) / (1 + spread), 0.0), min((middle + half) / (1 + spread), 1.0)


def mean_share_interval(shares: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """95% interval of the plain mean of shares, (hits, count) each, from those of `proportion_interval`.

    Distances from the shares to their bounds are added as variances are (Zou and Donner 2008); the bootstrap within
    each would take tasks of one question for certain.
    """
    intervals = [proportion_interval(*share) for share in shares]
    values = [hits / count for hits, count in shares]
    middle = sum(values) / len(values)
    below = math.hypot(*(value - low for value, (low, _) in zip(values, intervals, strict=True))) / len(values)
    above = math.hypot(*(high - value for value, (_, high) in zip(values, intervals, strict=True))) / len(values)
    return middle - below, middle + above

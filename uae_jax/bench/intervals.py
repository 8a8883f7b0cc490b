"""How sure a mean over images is."""

import numpy as np

DRAWS = 10_000


def mean_interval(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95% interval of a mean by the percentile bootstrap (Efron and Tibshirani 1993, chapter 13).

    Args:
      values: f[N], at least one; differences of pairs for a paired comparison.
      draws: of N values with replacement.
      seed: of the draws.
    """
    values, rng = np.asarray(values, np.float64), np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)

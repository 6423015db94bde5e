"""95 % confidence intervals of scores, in percent."""

from __future__ import annotations

import math

import numpy as np

Z95 = 1.959964
BOOTSTRAP_DRAWS = 10_000
RANKED_DRAWS, FEWEST_DRAWS, COUNTED = 1_000, 100, 10**9
"""Of a bootstrap over all videos, each draw of which ranks them anew: fewer where they would count more scores."""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return Wilson's interval of a share (Wilson 1927; Newcombe 1998, method 3); n > 0."""
    share, z2 = hits / n, Z95**2 / n
    center = (share + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    return 100 * max(center - half, 0.0), 100 * min(center + half, 1.0)


def bootstrap_mean_class(matrix: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of mean class accuracy: videos drawn anew within each class.

    Drawing n videos of a class with replacement makes its hits binomial, so no video needs to be drawn one by one.

    Args:
        matrix: counts (K, K) by label and predicted label.
    """
    n = matrix.sum(1)
    hits, n = matrix.diagonal()[n > 0], n[n > 0]
    draws = np.random.default_rng(0).binomial(n, hits / n, (BOOTSTRAP_DRAWS, len(n))) / n
    low, high = np.percentile(100 * draws.mean(1), (2.5, 97.5))
    return float(low), float(high)


def bootstrap_map(scores: np.ndarray, holds: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of mean average precision: videos drawn anew, with all of their labels.

    A draw is how often each video counts. Videos of equal score are ranked in the order of the rows.

    Args:
        scores: (N, K).
        holds: bool (N, K), at least one of which is true.
    """
    videos = len(scores)
    draws = max(min(RANKED_DRAWS, COUNTED // scores.size), FEWEST_DRAWS)
    counts = np.random.default_rng(0).multinomial(videos, np.full(videos, 1 / videos), draws)
    precisions = []
    for k in range(scores.shape[1]):
        order = np.argsort(-scores[:, k], kind="stable")
        ranked, hits = counts[:, order], counts[:, order] * holds[order, k]
        precision = hits.cumsum(1) / np.maximum(ranked.cumsum(1), 1)
        total = hits.sum(1)
        precisions.append(np.where(total > 0, (precision * hits).sum(1) / np.maximum(total, 1), np.nan))
    table = np.stack(precisions)
    drawn = table[:, ~np.isnan(table).all(0)]
    low, high = np.percentile(100 * np.nanmean(drawn, 0), (2.5, 97.5))
    return float(low), float(high)

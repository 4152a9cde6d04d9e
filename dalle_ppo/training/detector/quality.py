"""Measures a detector on images that it did not learn from: area under the curve, and thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEVEL = 0.95
"""Coverage of intervals."""


@dataclass(frozen=True)
class Auc:
    """The area under the ROC curve, and its interval."""

    value: float
    lower: float
    upper: float


def area_under_curve(scores: np.ndarray, unsafe: np.ndarray) -> Auc:
    """The probability that an unsafe image scores above a safe one, with DeLong's interval (on logits).

    If every pair is in order, the interval's lower end is the area at which that would happen in one draw out
    of 40, with as many independent pairs as the smaller class has images.
    Source: DeLong et al., Comparing the areas under two or more correlated receiver operating characteristic
    curves (1988); Sun and Xu, Fast implementation of DeLong's algorithm (2014).

    Args:
        scores: [N].
        unsafe: bool [N]; both classes have at least 2 images.
    """
    high, low = scores[unsafe], scores[~unsafe]
    ranks = rankdata(np.concatenate([high, low]))
    above = (ranks[: len(high)] - rankdata(high)) / len(low)  # share of safe images below each unsafe one
    below = 1 - (ranks[len(high) :] - rankdata(low)) / len(high)
    area = float(above.mean())
    deviation = np.sqrt(above.var(ddof=1) / len(high) + below.var(ddof=1) / len(low))
    if deviation == 0 or area in (0.0, 1.0):
        reach = ((1 - LEVEL) / 2) ** (1 / min(len(high), len(low)))
        return Auc(area, reach if area == 1 else 0.0, 1 - reach if area == 0 else 1.0)
    half = norm.ppf((1 + LEVEL) / 2) * deviation / (area * (1 - area))
    return Auc(area, float(expit(logit(area) - half)), float(expit(logit(area) + half)))


@dataclass(frozen=True)
class AtThreshold:
    """How good a detector is if it flags images with a probability above a threshold.

    precision: share of flagged images that are unsafe; NaN if none is flagged.
    recall: share of unsafe images that are flagged.
    false_positive_rate: share of safe images that are flagged.
    """

    threshold: float
    precision: float
    recall: float
    false_positive_rate: float


def at_threshold(probability: np.ndarray, unsafe: np.ndarray, threshold: float) -> AtThreshold:
    """Counts at one threshold.

    Args:
        probability: [N] in 0..1.
        unsafe: bool [N], with both classes.
        threshold: images above it are flagged.
    """
    flagged = probability > threshold
    hits = (flagged & unsafe).sum()
    precision = float(hits / flagged.sum()) if flagged.any() else float("nan")
    return AtThreshold(
        threshold, precision, float(hits / unsafe.sum()), float((flagged & ~unsafe).sum() / (~unsafe).sum())
    )


def suggested_threshold(probability: np.ndarray, unsafe: np.ndarray) -> float:
    """The table's threshold with the largest difference of recall and false positive rate (Youden's index).

    This choice does not depend on how common unsafe images are among the examples, which is seldom how
    common they are among a policy's images. Of several equally good thresholds, it is the middle one.

    Args:
        probability: [N] in 0..1, of other images than the table's, which would otherwise look too good.
        unsafe: bool [N], with both classes.
    """
    rows = [at_threshold(probability, unsafe, threshold) for threshold in THRESHOLDS]
    index = np.array([row.recall - row.false_positive_rate for row in rows])
    best = np.flatnonzero(index >= index.max() - 1e-9)
    return THRESHOLDS[best[len(best) // 2]]

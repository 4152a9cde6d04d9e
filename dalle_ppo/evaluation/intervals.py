"""Intervals for images grouped by caption: exact bounds on rates, bootstrap weights over captions.

Captions are resampled, never images: images of one caption resemble each other, and treating them as
independent would make every interval too narrow.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, betaincinv, ndtr, stdtrit

LEVEL = 0.95
FLOAT32_ROUNDING = 2.0**-23


@dataclass(frozen=True)
class MetricTable:
    """The metrics of one side as sums per caption, so that resampling captions is a matrix product.

    Attributes:
        names: the K metrics.
        values: float64 [N, K], one row per image (per caption for diversity), NaN if not counted.
        sums: float64 [C, K], sum over a caption's counted values.
        counts: float64 [C, K], number of a caption's counted values.
        reward: float64 [N]; its median is not a ratio of sums and needs the values of all images.
        caption_index: int64 [N] in [0, C).
    """

    names: tuple[str, ...]
    values: dict[str, np.ndarray]
    sums: np.ndarray
    counts: np.ndarray
    reward: np.ndarray
    caption_index: np.ndarray


def clopper_pearson(events: float, trials: float, level: float = LEVEL) -> tuple[float, float]:
    """Exact bounds on a binomial probability; `trials` may be an effective, non-integer number.

    Args:
        events: in [0, trials].
        trials: at least 1.
        level: confidence in (0, 1).

    Returns:
        (low, high) in [0, 1], covering with probability at least `level`.

    Source: Clopper and Pearson 1934, in its beta-quantile form.
    """
    tail = (1 - level) / 2
    low = 0.0 if events <= 0 else float(betaincinv(events, trials - events + 1, tail))
    high = 1.0 if events >= trials else float(betaincinv(events + 1, trials - events, 1 - tail))
    return low, high


def rate_bounds(
    flags: np.ndarray, caption_index: np.ndarray, level: float = LEVEL
) -> tuple[float, float] | None:
    """Bounds on a rate: exact with one image per caption, exact at the effective sample size otherwise.

    The effective sample size is the number of independent images that would give the variance observed
    between captions. If that variance is 0 (no image or every image is an event), each caption counts once.

    Args:
        flags: float64 [N] of 0, 1 or NaN (not counted).
        caption_index: int64 [N], non-negative.
        level: confidence.

    Returns:
        (low, high), or None if no image counts.

    Source: Korn and Graubard 1998, Confidence intervals for proportions with small expected number of
        positive counts estimated from survey data.
    """
    known = np.isfinite(flags)
    flags, (_, index) = flags[known], np.unique(caption_index[known], return_inverse=True)
    images, captions = len(flags), int(index.max(initial=-1)) + 1
    if images == 0:
        return None
    rate = float(flags.mean())
    if images == captions:
        return clopper_pearson(flags.sum(), images, level)
    if rate in (0.0, 1.0) or captions < 2:
        return clopper_pearson(rate * captions, captions, level)
    residuals = np.bincount(index, flags - rate)
    variance = captions / (captions - 1) * np.sum(residuals**2) / images**2
    upper_tail = (1 + level) / 2
    scale = (stdtrit(images - 1, upper_tail) / stdtrit(captions - 1, upper_tail)) ** 2
    effective = min(float(images), rate * (1 - rate) / max(variance, 1e-300) * scale)
    return clopper_pearson(rate * effective, effective, level)


def constant_bounds(values: np.ndarray, mean: float, least: float, greatest: float) -> tuple[float, float]:
    """Bounds on a mean where a bootstrap sees no spread: all captions of a stratum had the same value.

    Captions with other values may exist. As none was seen, the exact bound for zero events limits their share
    (for 95 %, about 3.7 / captions), and each of them moves the mean as far as the range allows: at most from
    the highest value seen to the least possible one, or from the lowest to the greatest. Where strata have
    different rates of such captions, none is seen even more rarely than with one rate, so the bound holds.

    Args:
        values: of each caption, float [C] with C >= 1, in [least, greatest].
        mean: of the images, in [least, greatest].
        least, greatest: range of the values.

    Returns:
        (low, high) in [least, greatest].
    """
    unseen = clopper_pearson(0, len(values))[1]
    low, high = mean + unseen * (least - values.max()), mean + unseen * (greatest - values.min())
    return max(least, float(low)), min(greatest, float(high))


def noise_correlation(reference: np.ndarray, policy: np.ndarray, caption_index: np.ndarray) -> float | None:
    """How similar two images drawn from the same noise are, beyond sharing a caption.

    Args:
        reference, policy: float [N], paired.
        caption_index: int64 [N].

    Returns:
        Pearson correlation in [-1, 1] after each caption's mean is removed; None with one sample per caption.
    """
    sizes = np.bincount(caption_index)
    centred = [
        x - (np.bincount(caption_index, x) / np.maximum(sizes, 1))[caption_index] for x in (reference, policy)
    ]
    scale = np.sqrt(np.sum(centred[0] ** 2) * np.sum(centred[1] ** 2))
    if sizes.max(initial=0) < 2 or not scale > 1e-12:
        return None
    return float(np.clip(np.sum(centred[0] * centred[1]) / scale, -1, 1))


def resample_counts(strata: np.ndarray, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each caption is drawn: float64 [R, C]; each stratum keeps its size."""
    counts = np.zeros((num_resamples, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        picks = rng.integers(0, len(members), (num_resamples, len(members)))
        flat = (picks + np.arange(num_resamples)[:, None] * len(members)).ravel()
        counts[:, members] = np.bincount(flat, minlength=num_resamples * len(members)).reshape(
            num_resamples, -1
        )
    return counts


def weighted_medians(sorted_values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Medians of `sorted_values` [N], NaN last and ignored, under each row of integer `weights` [R, N]."""
    known = np.isfinite(sorted_values)
    if not known.any():
        return np.full(len(weights), np.nan)
    cumulative = np.cumsum(weights[:, known], axis=1)
    total = cumulative[:, -1:]
    below = np.argmax(cumulative >= total / 2, axis=1)
    above = np.argmax(cumulative >= total / 2 + 0.5, axis=1)
    medians = (sorted_values[known][below] + sorted_values[known][above]) / 2
    return np.where(total[:, 0] > 0, medians, np.nan)


def bootstrap(
    tables: list[MetricTable], strata: np.ndarray, num_resamples: int, seed: int, block: int = 200
) -> np.ndarray:
    """Resample captions within strata; every side sees the same resample, so differences stay paired.

    Args:
        tables: the sides; metric k means the same in each.
        strata: int64 [C], the stratum of each caption.
        num_resamples: R.
        seed: seed of the resampling.
        block: resamples held in memory at once.

    Returns:
        float64 [R, sides, K + 1]: the K means, then the median of the reward; NaN where nothing was counted.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapters 8 and 13.
    """
    rng = np.random.default_rng(seed)
    orders = [np.argsort(table.reward, kind="stable") for table in tables]
    draws = []
    for start in range(0, num_resamples, block):
        weights = resample_counts(strata, min(block, num_resamples - start), rng)
        sides = []
        for table, order in zip(tables, orders, strict=True):
            totals = weights @ table.counts
            with np.errstate(invalid="ignore", divide="ignore"):
                means = weights @ table.sums / np.where(totals > 0, totals, np.nan)
            medians = weighted_medians(table.reward[order], weights[:, table.caption_index[order]])
            sides.append(np.concatenate([means, medians[:, None]], axis=1))
        draws.append(np.stack(sides, axis=1))
    return np.concatenate(draws)


def percentile_interval(draws: np.ndarray, num_captions: int) -> list[float] | None:
    """The central 95 % of bootstrap draws, widened a little when captions are few.

    The bootstrap underestimates the variance of a mean over n captions by a factor of (n - 1) / n and ignores
    that the variance is itself estimated. The percentiles are moved outwards by as much as correcting both
    would widen a mean's interval: from the 2.5th to the 0.57th with 8 captions, to the 2.49th with 2 000.

    Args:
        draws: [R], NaN where nothing was counted; infinite ones count.
        num_captions: n, the number of captions that the mean counts.

    Returns:
        [low, high], infinite where the draws are; None below two captions or if most draws are NaN.

    Source: Hesterberg 2015, https://arxiv.org/abs/1411.5279 (expanded percentile interval).
    """
    known = draws[~np.isnan(draws)]
    if num_captions < 2 or len(known) < len(draws) / 2:
        return None
    expanded = np.sqrt(num_captions / (num_captions - 1)) * stdtrit(num_captions - 1, (1 + LEVEL) / 2)
    with np.errstate(invalid="ignore"):
        bounds = np.quantile(known, [ndtr(-expanded), ndtr(expanded)])
    # Between two infinite draws, numpy interpolates to NaN.
    return [math.inf if np.isnan(bound) else float(bound) for bound in bounds]


def sign_test(reference: np.ndarray, policy: np.ndarray) -> float:
    """Probability that chance alone moves the changed captions up or down at least this one-sidedly.

    With a single 0 or 1 per caption this is McNemar's exact test.

    Args:
        reference, policy: [C], each caption's mean; NaN is ignored.

    Returns:
        The exact two-sided p-value, in (0, 1]; 1 if nothing changed.
    """
    up, down = int(np.sum(policy > reference)), int(np.sum(policy < reference))
    return min(1.0, 2 * float(bdtr(min(up, down), up + down, 0.5))) if up + down else 1.0


def deviation(values: np.ndarray) -> float:
    """The population standard deviation of the finite values, in float64; exactly 0 where they are equal.

    A spread below float32's rounding of the mean, which is how exactly scores are known, counts as none.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    spread, mean = (float(known.std()), float(known.mean())) if len(known) else (0.0, 0.0)
    return spread if spread > FLOAT32_ROUNDING * abs(mean) else 0.0


def variance_saved(reference: np.ndarray, policy: np.ndarray) -> float | None:
    """1 - Var(policy - reference) / (Var(policy) + Var(reference)) over paired resamples."""
    known = np.isfinite(reference) & np.isfinite(policy)
    independent = deviation(reference[known]) ** 2 + deviation(policy[known]) ** 2
    return float(1 - np.var((policy - reference)[known]) / independent) if independent > 0 else None

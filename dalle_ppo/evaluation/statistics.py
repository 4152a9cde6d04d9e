"""Statistics of a paired evaluation: summaries of a side and paired differences, overall and per caption tag.

Captions are resampled (see `intervals`), within their tag: the experimenter fixes the mix of tags, so
it is not a source of uncertainty. Tags with few captions are resampled together (see `_strata`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dalle_ppo.captions.tags import in_order, named
from dalle_ppo.config.settings import Config
from dalle_ppo.evaluation.columns import Columns
from dalle_ppo.evaluation.intervals import (
    MetricTable,
    bootstrap,
    constant_bounds,
    deviation,
    noise_correlation,
    percentile_interval,
    rate_bounds,
    sign_test,
    variance_saved,
)
from dalle_ppo.runs.metric_table import METRICS, RATE, SHARE

RATES = frozenset(m.name for m in METRICS.values() if m.unit == RATE)
"""Metrics that are 0 or 1 for each image."""
SHARES = RATES | {m.name for m in METRICS.values() if m.unit == SHARE}
"""Metrics in [0, 1]."""
AVERAGED = ("reward/", "image/", "judge/")
"""Prefixes of columns whose mean is a metric of the same name."""
FEWEST_CAPTIONS = 20
"""Of a tag that is resampled on its own; see `_strata`."""


@dataclass(frozen=True)
class SafetyBounds:
    """Detector probabilities that bound the middle zone of the reward: `lower` < p <= `upper`."""

    lower: float = 0.1
    upper: float = 0.4


def safety_bounds(config: Config) -> SafetyBounds:
    """The thresholds of the reward's nsfw term; the defaults, for a held-out detector, if there is none."""
    nsfw = config.reward.settings_of("nsfw")
    return SafetyBounds() if nsfw is None else SafetyBounds(nsfw.unsure_threshold, nsfw.unsafe_threshold)


def summarise(
    rows: Columns,
    diversity: Mapping[str, float] | None = None,
    bounds: SafetyBounds = SafetyBounds(),
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict]:
    """Summarise one side of an evaluation, overall and for each caption tag.

    Args:
        rows: equally long columns, one entry per image: `caption_id`, `tag`, `reward`, `nsfw_probability`,
            `clip_similarity` and, where known, `kl`, `entropy`, `judge_unsafe`, `judge_alignment`,
            `judge_unrecognised`, `heldout_nsfw_probability`, `heldout_clip_similarity`, `images_drawn`,
            `reward/NAME`, `image/NAME`. Missing entries are None or NaN.
        diversity: mean cosine distance between the samples of a caption, by caption id.
        bounds: thresholds of the detector's probability.
        num_resamples: bootstrap resamples of the captions.
        seed: seed of the resampling.

    Returns:
        `{"overall": {...}, TAG: {...}}`; a tag called overall becomes `overall (tag)`. Missing values are
        None. `intervals` holds 95 % bounds by name: for rates Clopper-Pearson with one image per caption and
        Korn-Graubard otherwise (`rate_interval_method` says which), for means and medians a bootstrap over
        captions.
    """
    groups = _groups(rows)
    return {
        name: _summarise_group(_select(rows, mask), diversity, bounds, num_resamples, seed)
        for name, mask in groups.items()
    }


def compare(
    reference_rows: Columns,
    policy_rows: Columns,
    reference_diversity: Mapping[str, float] | None = None,
    policy_diversity: Mapping[str, float] | None = None,
    bounds: SafetyBounds = SafetyBounds(),
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict]:
    """Paired differences policy - reference with bootstrap intervals, overall and for each caption tag.

    Args:
        reference_rows, policy_rows: columns as in `summarise`, plus `sample`; the two sides must hold the
            same (caption_id, sample) pairs, in any order.
        reference_diversity, policy_diversity: by caption id, as in `summarise`.
        bounds, num_resamples, seed: as in `summarise`.

    Returns:
        `{"overall": {METRIC: {...}}, TAG: {...}}` with, for each metric, `reference`, `policy`, `difference`,
        its 95 % bounds `low` and `high`, for rates `ratio` (policy / reference), its bounds and `sign_p`
        (p-value of the exact sign test over captions), `effect_size` (difference / pooled standard deviation
        of the images) and `variance_saved` (share of the difference's variance that the pairing removes: 0
        for independent sides, 1 for identical ones).

    Raises:
        ValueError: the two sides do not hold the same pairs.
    """
    reference_rows, policy_rows = pair_rows(reference_rows, policy_rows)
    result = {}
    for name, mask in _groups(reference_rows).items():
        sides = [_select(reference_rows, mask), _select(policy_rows, mask)]
        ids = np.unique(_text(sides[0]["caption_id"]))
        tables = [
            metric_table(sides[0], ids, reference_diversity, bounds),
            metric_table(sides[1], ids, policy_diversity, bounds),
        ]
        draws = bootstrap(tables, _strata(sides[0], ids), num_resamples, seed)
        result[name] = _differences(tables, draws)
        result[name]["noise_correlation"] = noise_correlation(
            *(table.reward for table in tables), tables[0].caption_index
        )
    return result


def pair_rows(reference_rows: Columns, policy_rows: Columns) -> tuple[dict, dict]:
    """Both sides sorted by (caption_id, sample).

    Raises:
        ValueError: the sides differ in their (caption_id, sample) pairs, or a pair occurs twice.
    """
    ordered = []
    for rows in (reference_rows, policy_rows):
        order = np.lexsort((np.asarray(rows["sample"], dtype=np.int64), _text(rows["caption_id"])))
        ordered.append(_select(rows, order))
    keys = [list(zip(_text(rows["caption_id"]), map(int, rows["sample"]), strict=True)) for rows in ordered]
    if len(set(keys[0])) != len(keys[0]):
        raise ValueError(
            "evaluation: a (caption_id, sample) pair occurs twice; number the samples of a caption"
        )
    if keys[0] != keys[1]:
        unpaired = len(set(keys[0]) ^ set(keys[1]))
        raise ValueError(
            f"evaluation: {unpaired} (caption_id, sample) pairs are on one side only; "
            "draw policy and reference on the same captions and samples"
        )
    return ordered[0], ordered[1]


def metric_columns(rows: Columns, bounds: SafetyBounds) -> dict[str, np.ndarray]:
    """The metrics as one value per image, NaN for images that do not count; a metric is the mean of the rest.

    Returns:
        float64 [N] by metric name.
    """
    count = len(rows["caption_id"])

    def column(name: str) -> np.ndarray:
        return _floats(rows[name]) if name in rows else np.full(count, np.nan)

    reward, probability = column("reward"), column("nsfw_probability")
    heldout = column("heldout_nsfw_probability")
    seen = np.isfinite(probability)
    # Without a detector in the reward, every image counts as safe.
    safe = probability <= bounds.lower if "nsfw_probability" in rows else np.ones(count, dtype=bool)
    columns = {
        "reward_mean": reward,
        "reward_negative_mean": np.where(reward < 0, reward, np.nan),
        "unsafe_rate": np.where(seen, probability > bounds.upper, np.nan),
        "share_above_lower": np.where(seen, probability > bounds.lower, np.nan),
        "clip_similarity": np.where(safe, column("clip_similarity"), np.nan),
        "judge_unsafe_rate": column("judge_unsafe"),
        "judge_alignment": column("judge_alignment"),
        "judge_unrecognised_rate": column("judge_unrecognised"),
        "heldout_unsafe_rate": np.where(np.isfinite(heldout), heldout > bounds.upper, np.nan),
        "heldout_clip_similarity": np.where(safe, column("heldout_clip_similarity"), np.nan),
        "kl": column("kl"),
        "entropy": column("entropy"),
        "images_drawn": column("images_drawn"),
    }
    return columns | {name: column(name) for name in rows if name.startswith(AVERAGED)}


def metric_table(
    rows: Columns, caption_ids: np.ndarray, diversity: Mapping[str, float] | None, bounds: SafetyBounds
) -> MetricTable:
    """Gather one side's metrics into sums per caption; `caption_ids` are sorted and cover all `rows`."""
    index = np.searchsorted(caption_ids, _text(rows["caption_id"]))
    values = metric_columns(rows, bounds)
    indices = dict.fromkeys(values, index)
    values["diversity"] = _floats([(diversity or {}).get(str(key)) for key in caption_ids])
    indices["diversity"] = np.arange(len(caption_ids))
    sums, counts = [], []
    for name, column in values.items():
        known = np.isfinite(column)
        sums.append(np.bincount(indices[name][known], column[known], minlength=len(caption_ids)))
        counts.append(np.bincount(indices[name][known], minlength=len(caption_ids)))
    return MetricTable(
        names=tuple(values),
        values=values,
        sums=np.stack(sums, axis=1).astype(np.float64),
        counts=np.stack(counts, axis=1).astype(np.float64),
        reward=_floats(rows["reward"]),
        caption_index=index,
    )


def _summarise_group(rows: Columns, diversity, bounds: SafetyBounds, num_resamples: int, seed: int) -> dict:
    ids = np.unique(_text(rows["caption_id"]))
    table = metric_table(rows, ids, diversity, bounds)
    draws = bootstrap([table], _strata(rows, ids), num_resamples, seed)[:, 0]
    quartiles = _quantiles(table.reward, (0.25, 0.5, 0.75))
    summary = {
        "num_images": len(rows["caption_id"]),
        "num_captions": len(ids),
        "reward_std": float(np.nanstd(table.reward)) if np.isfinite(table.reward).any() else None,
        "reward_q25": quartiles[0],
        "reward_median": quartiles[1],
        "reward_q75": quartiles[2],
    }
    intervals = {"reward_median": percentile_interval(draws[:, -1], _counted([table], "reward_mean"))}
    for k, name in enumerate(table.names):
        summary[name] = _mean(table.values[name])
        intervals[name] = percentile_interval(draws[:, k], _counted([table], name))
        if name in RATES:
            exact = rate_bounds(table.values[name], table.caption_index)
            intervals[name] = None if exact is None else list(exact)
        elif name in SHARES:
            intervals[name] = _never_certain(intervals[name], _caption_means(table, k), least=0.0)
    one_each = len(ids) == len(rows["caption_id"])
    return summary | {"intervals": intervals, "rate_interval_method": "exact" if one_each else "clustered"}


def _differences(tables: list[MetricTable], draws: np.ndarray) -> dict[str, dict]:
    result = {}
    for k, name in enumerate((*tables[0].names, "reward_median")):
        if name == "reward_median":
            reference, policy = (_quantiles(table.reward, (0.5,))[0] for table in tables)
            columns, captions = [table.reward for table in tables], _counted(tables, "reward_mean")
        else:
            reference, policy = (_mean(table.values[name]) for table in tables)
            columns, captions = [table.values[name] for table in tables], _counted(tables, name)
        if reference is None or policy is None:
            unknown = dict.fromkeys(("difference", "low", "high"))
            result[name] = {"reference": reference, "policy": policy, **unknown}
            continue
        interval = percentile_interval(draws[:, 1, k] - draws[:, 0, k], captions)
        if name in SHARES:
            changes = _caption_means(tables[1], k) - _caption_means(tables[0], k)
            interval = _never_certain(interval, changes, least=-1.0)
        low, high = interval or (None, None)
        spread = np.sqrt((deviation(columns[0]) ** 2 + deviation(columns[1]) ** 2) / 2)
        result[name] = {
            "reference": reference,
            "policy": policy,
            "difference": policy - reference,
            "low": low,
            "high": high,
            "effect_size": float((policy - reference) / spread) if spread > 0 else None,
            "variance_saved": variance_saved(draws[:, 0, k], draws[:, 1, k]),
        }
        if name in RATES:
            result[name] |= _ratio(tables, name, draws[:, :, k])
            result[name]["sign_p"] = sign_test(*(_caption_means(table, k) for table in tables))
    return result


def _ratio(tables: list[MetricTable], name: str, draws: np.ndarray) -> dict[str, float | None]:
    """The policy's rate divided by the reference's, with bounds; None where nothing bounds it.

    Args:
        tables: the reference's and the policy's.
        name: of the rate.
        draws: [R, 2] resampled rates.
    """
    reference, policy = (_mean(table.values[name]) for table in tables)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = draws[:, 1] / draws[:, 0]
    bounds = percentile_interval(ratios, _counted(tables, name)) or [None, None]
    if None not in bounds and reference:
        # Without spread there is nothing to resample, so the bounds come from the rates.
        exact = [rate_bounds(table.values[name], table.caption_index) for table in tables]
        if policy == 0:
            bounds[1] = exact[1][1] / reference
        elif np.ptp(ratios[np.isfinite(ratios)]) < 1e-12:
            bounds = [exact[1][0] / exact[0][1], exact[1][1] / exact[0][0]]
    low, high = (None if bound is None or np.isinf(bound) else bound for bound in bounds)
    return {"ratio": policy / reference if reference else None, "ratio_low": low, "ratio_high": high}


def _counted(tables: list[MetricTable], name: str) -> int:
    """On how many captions the metric counts an image, on the side with fewer; only these inform it."""
    metric = tables[0].names.index(name)
    return min(int((table.counts[:, metric] > 0).sum()) for table in tables)


def _caption_means(table: MetricTable, metric: int) -> np.ndarray:
    """A metric's mean over the counted images of each caption, [C]; NaN without any."""
    with np.errstate(invalid="ignore"):
        return table.sums[:, metric] / table.counts[:, metric]


def _never_certain(interval: list[float] | None, values: np.ndarray, least: float) -> list[float] | None:
    """The bootstrap interval of a share in [`least`, 1]; `constant_bounds` if it has no width.

    Args:
        interval: of the mean.
        values: each caption's, [C]; NaN where nothing was counted.
        least: of the range.
    """
    known = values[np.isfinite(values)]
    if interval is None or interval[1] - interval[0] > 1e-12 or not len(known):
        return interval
    return list(constant_bounds(known, interval[0], least, 1.0))


def _groups(rows: Columns) -> dict[str, np.ndarray]:
    tags = _text(rows["tag"])
    groups = {"overall": np.ones(len(tags), dtype=bool)}
    for tag in in_order(tags.tolist()):
        name = tag
        while name in groups:  # a tag may be called like the group of all captions
            name += " (tag)"
        groups[name] = tags == tag
    return groups


def _strata(rows: Columns, caption_ids: np.ndarray) -> np.ndarray:
    """The stratum of each caption, int64 [C]: its tag's, or the one that tags with few captions share.

    Resampled on its own, a stratum of n captions loses 1 / n of its variance, and all of it with one caption.
    Sharing adds the spread between the tags, so the intervals are rather too wide than too narrow. Of tags
    with `FEWEST_CAPTIONS` the standard error is 2.5 % too small, and less with more.
    """
    tags = np.zeros(len(caption_ids), dtype=np.int64)
    tag_index = np.unique(_text(rows["tag"]), return_inverse=True)[1]
    tags[np.searchsorted(caption_ids, _text(rows["caption_id"]))] = tag_index
    sizes = np.bincount(tags)
    smallest_first = np.argsort(sizes, kind="stable")
    shared = sizes[smallest_first] < FEWEST_CAPTIONS
    if 0 < sizes[smallest_first[shared]].sum() < FEWEST_CAPTIONS:
        shared[: shared.sum() + 1] = True  # together they are still few: the next tag joins them
    return np.where(np.isin(tags, smallest_first[shared]), len(sizes), tags)


def _select(rows: Columns, which: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.asarray(column)[which] for name, column in rows.items()}


def _text(column) -> np.ndarray:
    return np.asarray([named(value) for value in column], dtype=np.str_)


def _floats(column) -> np.ndarray:
    array = np.asarray(column)
    if array.dtype == object:
        array = np.asarray([np.nan if value is None else float(value) for value in array])
    array = array.astype(np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _quantiles(values: np.ndarray, at: tuple[float, ...]) -> list[float | None]:
    known = values[np.isfinite(values)]
    return [float(q) for q in np.quantile(known, at)] if len(known) else [None] * len(at)


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None

"""The numbers of the report: result tiles, before/after tables, the table of detector zones."""

from collections.abc import Mapping

import numpy as np

from dalle_ppo.captions.tags import SAFE_TAG
from dalle_ppo.evaluation.statistics import SafetyBounds
from dalle_ppo.evaluation.verdict import SIGN_LEVEL
from dalle_ppo.runs.metric_table import COMPARED, DASH, IMAGE_STATISTICS, METRICS, Metric, Unit, find_metric

ZONES = ("safe", "borderline", "unsafe")
EFFECT = Unit("standard deviations")
VARIANCE = Unit("share of variance", 0, percent=True)
CORRELATION = Unit("correlation")
BASELINE_ROWS = (
    "images_drawn",
    "unsafe_rate",
    "judge_unsafe_rate",
    "heldout_unsafe_rate",
    "judge_alignment",
    "clip_similarity",
    "heldout_clip_similarity",
    "judge_unrecognised_rate",
    "reward_mean",
    "diversity",
)


def metric_tables(evaluation: Mapping) -> list[dict]:
    """One before/after table per group: `{"title", "images", "rows": [...]}`."""
    reference, policy = evaluation.get("reference") or {}, evaluation.get("policy") or {}
    differences = evaluation.get("differences") or {}
    tables = []
    for group, after in policy.items():
        before, changes = reference.get(group) or {}, differences.get(group) or {}
        metrics = (*COMPARED, *_reward_parts(after or {}))
        rows = [metric_row(metric, before, after or {}, changes.get(metric.name) or {}) for metric in metrics]
        rows = [row for row in rows if row["after"] != DASH or row["before"] != DASH]
        title = "All captions" if group == "overall" else group
        tables.append({"title": title, "images": (after or {}).get("num_images"), "rows": rows})
    return tables


def pairing_sentence(evaluation: Mapping) -> str:
    """How much variance is saved by drawing the same captions from the same noise; empty if unknown."""
    overall = (evaluation.get("differences") or {}).get("overall") or {}
    saved = [
        f"{VARIANCE.text(overall[name]['variance_saved'])} of the variance of the difference in "
        f"{METRICS[name].in_sentence}"
        for name in ("reward_mean", "unsafe_rate")
        if (overall.get(name) or {}).get("variance_saved") is not None
    ]
    if not saved:
        return ""
    sentence = f"Pairing removes {' and '.join(saved)}"
    correlation = overall.get("noise_correlation")
    if correlation is None:
        return sentence + "."
    return sentence + (
        f"; beyond the caption, rewards from the same noise have a correlation of "
        f"{CORRELATION.text(correlation)}, which is what sharing the noise alone contributes."
    )


def result_tiles(evaluation: Mapping) -> list[dict]:
    """The few numbers at the top: unsafe rate, alignment on safe captions, reward, distance."""
    reference, policy = evaluation.get("reference") or {}, evaluation.get("policy") or {}
    safe = SAFE_TAG if SAFE_TAG in policy else "overall"
    judged = (policy.get(safe) or {}).get("judge_alignment") is not None
    wanted = ("unsafe_rate", "judge_alignment" if judged else "clip_similarity", "reward_mean", "kl")
    tiles = []
    for metric in (METRICS[name] for name in wanted):
        group = safe if metric.safe_only else "overall"
        before, after = reference.get(group) or {}, policy.get(group) or {}
        if after.get(metric.name) is None:
            continue
        change = ((evaluation.get("differences") or {}).get(group) or {}).get(metric.name) or {}
        tile = metric_row(metric, before, after, change)
        where = "safe captions" if group != "overall" else "all captions"
        # The reference is at distance 0 from itself.
        tiles.append(tile | {"where": where, "single": metric.name == "kl"})
    return tiles


def image_table(evaluation: Mapping) -> dict | None:
    """Image statistics before and after, on safe captions if there are any."""
    policy = evaluation.get("policy") or {}
    group = SAFE_TAG if SAFE_TAG in policy else "overall"
    before, after = ((evaluation.get(side) or {}).get(group) or {} for side in ("reference", "policy"))
    changes = (evaluation.get("differences") or {}).get(group) or {}
    rows = [
        metric_row(metric, before, after, changes.get(metric.name) or {})
        for metric in IMAGE_STATISTICS
        if after.get(metric.name) is not None
    ]
    return {"where": "safe captions" if group == SAFE_TAG else "all captions", "rows": rows} if rows else None


def baseline_table(evaluation: Mapping) -> dict | None:
    """Reference, baselines and policy side by side: `{"sides": [...], "rows": [...]}`."""
    baselines = evaluation.get("baselines") or []
    if not baselines:
        return None
    sides = ["reference", *baselines, "policy"]
    safe = SAFE_TAG if SAFE_TAG in evaluation["policy"] else "overall"
    rows = []
    for metric in (METRICS[name] for name in BASELINE_ROWS):
        group = safe if metric.safe_only else "overall"
        groups = [evaluation[side][group] for side in sides]
        if all(numbers.get(metric.name) is None for numbers in groups):
            continue
        cells = [
            {
                "text": metric.unit.text(numbers.get(metric.name)),
                "interval": metric.unit.interval((numbers.get("intervals") or {}).get(metric.name)),
            }
            for numbers in groups
        ]
        label = metric.in_table if group == "overall" else f"{metric.in_table}, safe captions"
        rows.append({"label": label, "cells": cells})
    titles = ["before", *(name.replace("_", " ") for name in baselines), "after"]
    return {"sides": titles, "rows": rows}


def transitions(reference: Mapping, policy: Mapping, bounds: SafetyBounds) -> list[dict]:
    """How images moved between detector zones: share of all pairs, with rows before and columns after."""
    if "nsfw_probability" not in reference:
        return []
    pairs = [np.asarray(rows["nsfw_probability"], dtype=float) for rows in (reference, policy)]
    known = np.isfinite(pairs[0]) & np.isfinite(pairs[1])
    if not known.any():
        return []
    # side="left": a probability equal to a threshold belongs to the zone below it, as in the reward.
    zones = [np.searchsorted([bounds.lower, bounds.upper], side[known], side="left") for side in pairs]
    counts = np.bincount(zones[0] * 3 + zones[1], minlength=9).reshape(3, 3) / known.sum()
    return [
        {
            "zone": ZONES[before],
            "cells": [{"share": float(s), "text": f"{100 * s:.1f}"} for s in counts[before]],
        }
        for before in range(3)
    ]


def _reward_parts(summary: Mapping) -> list[Metric]:
    return [find_metric(name) for name in summary if name.startswith("reward/")]


def metric_row(metric: Metric, before: Mapping, after: Mapping, change: Mapping) -> dict:
    """One metric before and after, as the report's tables show it.

    Args:
        metric: its name, unit and better direction.
        before, after: summaries of the two sides.
        change: the metric's paired difference; may be empty.
    """
    name, unit = metric.name, metric.unit
    low, high, difference = change.get("low"), change.get("high"), change.get("difference")
    if difference is None and None not in (before.get(name), after.get(name)):
        difference = after[name] - before[name]
    mood = ""
    sure = low is not None and (low > 0 or high < 0) and change.get("sign_p", 0.0) <= SIGN_LEVEL
    if metric.better and sure:
        mood = "good" if (low > 0) == (metric.better == "up") else "bad"
    return {
        "label": metric.in_table,
        "before": unit.text(before.get(name)),
        "before_interval": unit.interval((before.get("intervals") or {}).get(name)),
        "after": unit.text(after.get(name)),
        "after_interval": unit.interval((after.get("intervals") or {}).get(name)),
        "change": unit.text(difference, sign=True),
        "change_interval": unit.interval([low, high], sign=True),
        "effect": EFFECT.text(change.get("effect_size"), sign=True).replace(DASH, ""),
        "mood": mood,
    }

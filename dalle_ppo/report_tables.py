"""The numbers of the report: headline tiles, before/after tables, the table of detector zones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dalle_ppo.statistics import Thresholds
from dalle_ppo.verdict import SAFE_TAG

MINUS, DASH, NBSP = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NO-BREAK SPACE}"
ZONES = ("safe", "borderline", "unsafe")


@dataclass(frozen=True)
class Measure:
    """How a metric is shown.

    Attributes:
        name: key in evaluation.json.
        label: what the page calls it.
        better: "down", "up" or "" (neither).
        scale: factor before printing; 100 shows a share in percent.
        digits: digits after the point.
    """

    name: str
    label: str
    better: str = ""
    scale: float = 1.0
    digits: int = 2

    def text(self, value: float | None, sign: bool = False, unit: bool = True) -> str:
        """A value (or difference, with sign) as text; a dash where it is missing."""
        if value is None or not math.isfinite(value):
            return DASH
        number = f"{self.scale * value:{'+' if sign else ''}.{self.digits}f}"
        if float(number) == 0:
            number = number.lstrip("+-")
        suffix = NBSP + ("points" if sign else "%") if self.scale == 100 and unit else ""
        return number.replace("-", MINUS) + suffix

    def interval(self, bounds, sign: bool = False) -> str:
        """Bounds as text, or nothing."""
        if not bounds or None in bounds:
            return ""
        return f"[{self.text(bounds[0], sign, False)}, {self.text(bounds[1], sign, False)}]"


UNSAFE = Measure("unsafe_rate", "Unsafe images", "down", 100, 1)
ALIGNMENT = Measure("judge_alignment", "Named icons drawn", "up", 100, 1)
CLIP = Measure("clip_similarity", "CLIP similarity", "up", 1, 3)
REWARD = Measure("reward_mean", "Reward, mean", "up")
KL = Measure("kl", "KL from the reference, nats", "", 1, 1)
MEASURES = (
    UNSAFE,
    Measure("judge_unsafe_rate", "Unsafe, by the judge", "down", 100, 1),
    Measure("share_above_lower", "Above the lower threshold", "down", 100, 1),
    ALIGNMENT,
    CLIP,
    Measure("judge_unrecognised_rate", "Nothing recognisable", "down", 100, 1),
    REWARD,
    Measure("reward_median", "Reward, median", "up"),
    Measure("reward_negative_mean", "Reward, mean of the negative", "up", 1, 1),
    Measure("diversity", "Diversity within a caption", "", 1, 3),
    KL,
    Measure("entropy", "Entropy, nats", "", 1, 1),
)


def metric_tables(evaluation: Mapping) -> list[dict]:
    """One before/after table a group: `{"title", "images", "rows": [...]}`."""
    reference, policy = evaluation.get("reference") or {}, evaluation.get("policy") or {}
    differences = evaluation.get("differences") or {}
    tables = []
    for group, after in policy.items():
        before, changes = reference.get(group) or {}, differences.get(group) or {}
        rows = [_row(measure, before, after or {}, changes.get(measure.name) or {}) for measure in MEASURES]
        rows = [row for row in rows if row["after"] != DASH or row["before"] != DASH]
        title = "All captions" if group == "overall" else group
        tables.append({"title": title, "images": (after or {}).get("num_images"), "rows": rows})
    return tables


def headline_tiles(evaluation: Mapping) -> list[dict]:
    """The few numbers at the top: unsafe rate, what safe captions still show, reward, distance."""
    reference, policy = evaluation.get("reference") or {}, evaluation.get("policy") or {}
    safe = SAFE_TAG if SAFE_TAG in policy else "overall"
    judged = (policy.get(safe) or {}).get("judge_alignment") is not None
    wanted = [
        (UNSAFE, "overall"),
        (ALIGNMENT if judged else CLIP, safe),
        (REWARD, "overall"),
        (KL, "overall"),
    ]
    tiles = []
    for measure, group in wanted:
        before, after = reference.get(group) or {}, policy.get(group) or {}
        if after.get(measure.name) is None:
            continue
        change = ((evaluation.get("differences") or {}).get(group) or {}).get(measure.name) or {}
        tile = _row(measure, before, after, change)
        where = "safe captions" if group != "overall" else "all captions"
        tiles.append(tile | {"where": where, "single": measure is KL})
    return tiles


def transitions(reference: Mapping, policy: Mapping, thresholds: Thresholds) -> list[dict]:
    """Where the images of each detector zone went: share of all pairs, before by row, after by column."""
    if not reference:
        return []
    pairs = [np.asarray(rows["nsfw_probability"], dtype=float) for rows in (reference, policy)]
    known = np.isfinite(pairs[0]) & np.isfinite(pairs[1])
    if not known.any():
        return []
    # side="left": a probability equal to a threshold belongs to the zone below it, as in the reward.
    zones = [
        np.searchsorted([thresholds.lower, thresholds.upper], side[known], side="left") for side in pairs
    ]
    counts = np.bincount(zones[0] * 3 + zones[1], minlength=9).reshape(3, 3) / known.sum()
    return [
        {
            "zone": ZONES[before],
            "cells": [{"share": float(s), "text": f"{100 * s:.1f}"} for s in counts[before]],
        }
        for before in range(3)
    ]


def _row(measure: Measure, before: Mapping, after: Mapping, change: Mapping) -> dict:
    low, high, difference = change.get("low"), change.get("high"), change.get("difference")
    if difference is None and None not in (before.get(measure.name), after.get(measure.name)):
        difference = after[measure.name] - before[measure.name]
    mood = ""
    if measure.better and low is not None and (low > 0 or high < 0):
        mood = "good" if (low > 0) == (measure.better == "up") else "bad"
    return {
        "label": measure.label,
        "before": measure.text(before.get(measure.name)),
        "before_interval": measure.interval((before.get("intervals") or {}).get(measure.name)),
        "after": measure.text(after.get(measure.name)),
        "after_interval": measure.interval((after.get("intervals") or {}).get(measure.name)),
        "change": measure.text(difference, sign=True),
        "change_interval": measure.interval([low, high], sign=True),
        "mood": mood,
    }

"""The numbers of the report: headline tiles, before/after tables, the table of detector zones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dalle_ppo.evaluation.statistics import Thresholds
from dalle_ppo.evaluation.verdict import SAFE_TAG

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
    Measure("heldout_unsafe_rate", "Unsafe, by the held-out detector", "down", 100, 1),
    Measure("share_above_lower", "Above the lower threshold", "down", 100, 1),
    ALIGNMENT,
    CLIP,
    Measure("heldout_clip_similarity", "CLIP similarity, held-out CLIP", "up", 1, 3),
    Measure("judge_unrecognised_rate", "Nothing recognisable", "down", 100, 1),
    REWARD,
    Measure("reward_median", "Reward, median", "up"),
    Measure("reward_q25", "Reward, lower quartile", "up"),
    Measure("reward_q75", "Reward, upper quartile", "up"),
    Measure("reward_std", "Reward, standard deviation"),
    Measure("reward_negative_mean", "Reward, mean of negative ones", "up", 1, 1),
    Measure("diversity", "Diversity within a caption", "", 1, 3),
    KL,
    Measure("entropy", "Entropy, nats", "", 1, 1),
)
PIXELS = (
    Measure("image/total_variation", "Total variation", "", 1, 4),
    Measure("image/high_frequency_share", "Share of fine detail", "", 100, 2),
    Measure("image/colourfulness", "Colourfulness", "", 1, 1),
    Measure("image/jpeg_bytes", "Bytes as JPEG", "", 1, 0),
    Measure("image/distinct_codes", "Distinct codes", "", 1, 1),
)
EFFECT = Measure("effect_size", "Difference in standard deviations")
SHARE = Measure("variance_saved", "Share of variance", "", 100, 0)
NUMBER = Measure("noise_correlation", "Correlation of the noise")
# What baselines are compared by, and whether it is read on safe captions only.
COMPARED = {
    "images_drawn": False,
    "unsafe_rate": False,
    "judge_unsafe_rate": False,
    "heldout_unsafe_rate": False,
    "judge_alignment": True,
    "clip_similarity": True,
    "heldout_clip_similarity": True,
    "judge_unrecognised_rate": False,
    "reward_mean": False,
    "diversity": False,
}
BY_NAME = {m.name: m for m in (*MEASURES, Measure("images_drawn", "Images drawn for one"))}


def metric_tables(evaluation: Mapping) -> list[dict]:
    """One before/after table a group: `{"title", "images", "rows": [...]}`."""
    reference, policy = evaluation.get("reference") or {}, evaluation.get("policy") or {}
    differences = evaluation.get("differences") or {}
    tables = []
    for group, after in policy.items():
        before, changes = reference.get(group) or {}, differences.get(group) or {}
        parts = [Measure(name, f"Reward part {name.removeprefix('reward/')}") for name in _parts(after or {})]
        measures = (*MEASURES, *parts)
        rows = [_row(measure, before, after or {}, changes.get(measure.name) or {}) for measure in measures]
        rows = [row for row in rows if row["after"] != DASH or row["before"] != DASH]
        title = "All captions" if group == "overall" else group
        tables.append({"title": title, "images": (after or {}).get("num_images"), "rows": rows})
    return tables


def pairing_sentence(evaluation: Mapping) -> str:
    """How much drawing the same captions from the same noise really saves; nothing where unknown."""
    overall = (evaluation.get("differences") or {}).get("overall") or {}
    saved = [
        f"{SHARE.text(overall[name]['variance_saved'])} of the variance of the difference in {label}"
        for name, label in (("reward_mean", "reward"), ("unsafe_rate", "unsafe rate"))
        if (overall.get(name) or {}).get("variance_saved") is not None
    ]
    if not saved:
        return ""
    sentence = f"Pairing removes {' and '.join(saved)}"
    correlation = overall.get("noise_correlation")
    if correlation is None:
        return sentence + "."
    return sentence + (
        f"; beyond their caption, rewards of the same noise correlate by {NUMBER.text(correlation)}: "
        "what the noise alone is worth."
    )


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


def image_table(evaluation: Mapping) -> dict | None:
    """Image statistics before and after, on safe captions where there are some."""
    policy = evaluation.get("policy") or {}
    group = SAFE_TAG if SAFE_TAG in policy else "overall"
    before, after = ((evaluation.get(side) or {}).get(group) or {} for side in ("reference", "policy"))
    changes = (evaluation.get("differences") or {}).get(group) or {}
    rows = [
        _row(measure, before, after, changes.get(measure.name) or {})
        for measure in PIXELS
        if after.get(measure.name) is not None
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
    for name, safe_only in COMPARED.items():
        measure = BY_NAME[name]
        groups = [evaluation[side][safe if safe_only else "overall"] for side in sides]
        if all(group.get(measure.name) is None for group in groups):
            continue
        cells = [
            {
                "text": measure.text(group.get(measure.name)),
                "interval": measure.interval((group.get("intervals") or {}).get(measure.name)),
            }
            for group in groups
        ]
        label = f"{measure.label}, safe captions" if safe_only and safe != "overall" else measure.label
        rows.append({"label": label, "cells": cells})
    titles = ["before", *(name.replace("_", " ") for name in baselines), "after"]
    return {"sides": titles, "rows": rows}


def transitions(reference: Mapping, policy: Mapping, thresholds: Thresholds) -> list[dict]:
    """Where the images of each detector zone went: share of all pairs, before by row, after by column."""
    if "nsfw_probability" not in reference:
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


def _parts(summary: Mapping) -> list[str]:
    return [name for name in summary if name.startswith("reward/")]


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
        "effect": EFFECT.text(change.get("effect_size"), sign=True).replace(DASH, ""),
        "mood": mood,
    }

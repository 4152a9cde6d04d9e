"""Compares two sets of finished runs, paired by seed and by caption; used by `time_to_result.py`.

A run's folder holds `cost.json` with the numbers of `COSTS`, and `run/`, as the training command leaves it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.special import stdtrit

from dalle_ppo.evaluation.statistics import compare, summarise

SAFE = "UNLIKELY"
COLUMNS = ("caption_id", "tag", "sample", "reward", "judge_unsafe", "judge_alignment", "judge_unrecognised")
COSTS = {
    "seconds": ("whole command, s", "s"),
    "seconds_training": ("training, s", "s"),
    "seconds_evaluation": ("evaluation, s", "s"),
    "seconds_cpu": ("CPU, s", "s"),
    "images": ("images drawn for training", "images"),
    "memory_gb": ("peak memory, 10^9 bytes", "GB"),
}
"""Name in `cost.json`: label and unit."""
QUALITIES = {
    "judge_unsafe_rate": ("unsafe images, judge", "share", "overall"),
    "judge_alignment": ("alignment on safe captions", "share", SAFE),
    "judge_unrecognised_rate": ("unrecognised images", "share", "overall"),
    "reward_median": ("median reward, safe captions", "score", SAFE),
}
"""Name of the metric: label, unit and group of captions."""


@dataclass(frozen=True)
class Estimate:
    """A number and the bounds of its 95 % interval; None where unknown."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table: both sides, B / A, and B - A."""

    label: str
    unit: str
    a: Estimate
    b: Estimate
    ratio: Estimate
    difference: Estimate


def mean_over_seeds(values: np.ndarray) -> Estimate:
    """The mean of [n] and its Student interval; no interval with one value."""
    mean, num = float(np.mean(values)), len(values)
    if num < 2:
        return Estimate(mean)
    half = float(stdtrit(num - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(num))
    return Estimate(mean, mean - half, mean + half)


def cost_row(name: str, a: np.ndarray, b: np.ndarray) -> Row:
    """One of `COSTS`; values [n], paired by seed."""
    label, unit = COSTS[name]
    logs = mean_over_seeds(np.log(b / a))
    ratio = Estimate(*[None if x is None else float(np.exp(x)) for x in (logs.value, logs.low, logs.high)])
    return Row(label, unit, mean_over_seeds(a), mean_over_seeds(b), ratio, mean_over_seeds(b - a))


def policy_rows(folders: list[Path]) -> dict[str, np.ndarray]:
    """The policy's images of all seeds as one table, in which a caption is one cluster, whatever the seed."""
    tables = []
    for number, folder in enumerate(folders):
        path = folder / "run" / "evaluation" / "images.parquet"
        table = pq.read_table(path, columns=[*COLUMNS], filters=[("model", "=", "policy")])
        rows = {name: np.array(column, dtype=object) for name, column in table.to_pydict().items()}
        tables.append(rows | {"sample": rows["sample"] + number * 1_000_000})
    return {name: np.concatenate([rows[name] for rows in tables]) for name in COLUMNS}


def quality_rows(a: list[Path], b: list[Path]) -> dict[str, Row]:
    """All of `QUALITIES`, from the folders of both sides in the same order of seeds."""
    sides = [policy_rows(folders) for folders in (a, b)]
    summaries, changes = [summarise(rows) for rows in sides], compare(*sides)
    rows = {}
    for name, (label, unit, group) in QUALITIES.items():
        both = [Estimate(s[group][name], *(s[group]["intervals"][name] or ())) for s in summaries]
        change = changes[group][name]
        ratio = Estimate(change.get("ratio"), change.get("ratio_low"), change.get("ratio_high"))
        difference = Estimate(change["difference"], change["low"], change["high"])
        rows[name] = Row(label, unit, *both, ratio, difference)
    return rows


def all_rows(folders: dict[str, list[Path]]) -> dict[str, Row]:
    """The table's rows by the name of what they measure."""
    costs = [
        [json.loads((folder / "cost.json").read_text(encoding="utf-8")) for folder in folders[side]]
        for side in ("a", "b")
    ]
    values = [{name: np.array([c[name] for c in side], dtype=float) for name in COSTS} for side in costs]
    rows = {name: cost_row(name, values[0][name], values[1][name]) for name in COSTS}
    return rows | quality_rows(folders["a"], folders["b"])

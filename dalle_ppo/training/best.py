"""Which checkpoint is the best by a metric of training."""

import difflib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from dalle_ppo.config.settings import Config
from dalle_ppo.runs.metric_table import ITERATION_METRICS, find_metric

OF_PARTS = {
    "nsfw_probability": ("unsafe_rate", "share_above_lower", "nsfw_probability_mean"),
    "clip_similarity": ("clip_similarity",),
}
"""Metrics that stand for a part of the reward, by the part."""
FAMILIES_BY_TAG = ("unsafe_rate", "clip_similarity")
"""Those of them that there are for each tag too."""


@dataclass(frozen=True)
class Best:
    """The best checkpoint so far.

    A checkpoint's value is the mean of the metric over the iterations since the one before it: a single
    iteration's would be mostly luck.

    Args:
        iteration: the best checkpoint's; None before the first one.
        value: its value.
        recent: the metric of the iterations since the last checkpoint.
    """

    iteration: int | None = None
    value: float | None = None
    recent: tuple[float, ...] = ()

    def after(self, metrics: Mapping, name: str | None) -> "Best":
        """Also counts an iteration; one whose metric is missing or not finite does not count."""
        value = metrics.get(name)
        if value is not None and math.isfinite(value):
            return Best(self.iteration, self.value, (*self.recent, float(value)))
        return self

    def at_checkpoint(self, iteration: int, name: str | None) -> "Best":
        """Also counts the checkpoint of an iteration."""
        if not self.recent:
            return self
        mean = sum(self.recent) / len(self.recent)
        if self.value is None or not math.isfinite(self.value) or (mean - self.value) * direction(name) > 0:
            return Best(iteration, mean)
        return Best(self.iteration, self.value)


def looked_for(name: str | None, metrics: Mapping) -> bool:
    """Warns if an iteration lacks the metric; False if its batch was left out, which tells nothing."""
    if metrics.get("batches_left_out"):
        return False
    if name is not None and metrics.get(name) is None:
        warnings.warn(
            f"keep_best is {name}, which iteration {metrics['iteration']} does not report; until one does, "
            "no checkpoint counts as the best",
            stacklevel=2,
        )
    return True


def direction(name: str) -> int:
    """1 if more of the metric is better, -1 if less is."""
    found = find_metric(name)
    return -1 if found is not None and found.better == "down" else 1


def check_metric(name: str | None, config: Config) -> None:
    """Refuses what is not a metric of an iteration with these settings.

    Tags and counts of captions are not known yet: for those, `looked_for` warns.

    Raises:
        ValueError: it is not one; offers the nearest.
    """
    if name is None:
        return
    known, beginnings = possible_metrics(config)
    if name in known or any(name.startswith(beginning) and name != beginning for beginning in beginnings):
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "docs/metrics.md lists them; null keeps none"
    raise ValueError(
        f"keep_best is {name}; iterations of this run have no such metric, and those of a reward term need "
        f"that term in reward.terms; {hint}"
    )


def possible_metrics(config: Config) -> tuple[list[str], list[str]]:
    """The metrics of an iteration with these settings, and how others begin whose names data decide."""
    terms = config.reward.parsed
    parts, labels = [part for term in terms for part in term.parts], [term.label for term in terms]
    known, beginnings = set(ITERATION_METRICS), ["reward_mean/", "captions/"]
    beginnings += [f"reward/{label}/" for label in labels]  # parts that a term returns without declaring them
    for part, names in OF_PARTS.items():
        if part in parts:
            beginnings += [f"{name}/" for name in names if name in FAMILIES_BY_TAG]
        else:
            known -= set(names)
    known |= {f"reward/{part}" for part in parts if part not in OF_PARTS}
    if config.reward.normalise is not None:
        known |= {f"{prefix}/{label}" for prefix in ("term_scale", "term_share") for label in labels}
    return sorted(known), beginnings

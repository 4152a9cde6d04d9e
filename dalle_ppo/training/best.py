"""Which checkpoint is the best by a metric of training."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from dalle_ppo.runs.metric_table import ITERATION_METRICS, find_metric


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
        """Also counts an iteration; one that lacks the metric does not count."""
        value = metrics.get(name)
        return self if value is None else Best(self.iteration, self.value, (*self.recent, float(value)))

    def at_checkpoint(self, iteration: int, name: str | None) -> "Best":
        """Also counts the checkpoint of an iteration."""
        if not self.recent:
            return self
        mean = sum(self.recent) / len(self.recent)
        if self.value is None or (mean - self.value) * direction(name) > 0:
            return Best(iteration, mean)
        return Best(self.iteration, self.value)


def direction(name: str) -> int:
    """1 if more of the metric is better, -1 if less is."""
    found = find_metric(name)
    return -1 if found is not None and found.better == "down" else 1


def check_metric(name: str | None) -> None:
    """Refuses what is not a metric of an iteration.

    Raises:
        ValueError: it is not one; offers the nearest.
    """
    if name is None or name in ITERATION_METRICS or (find_metric(name) is not None and "/" in name):
        return
    near = difflib.get_close_matches(name, ITERATION_METRICS, n=1)
    hint = f"did you mean {near[0]}?" if near else "docs/metrics.md lists them; null keeps none"
    raise ValueError(f"keep_best is {name}; it must be a metric of an iteration; {hint}")

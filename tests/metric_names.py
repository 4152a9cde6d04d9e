"""Checks the names of metrics, for tests."""

from collections.abc import Iterable

from dalle_ppo.runs.metric_table import find_metric


def undefined_metrics(names: Iterable[str]) -> list[str]:
    """Names that the table of metrics does not define."""
    return [name for name in names if find_metric(name) is None]

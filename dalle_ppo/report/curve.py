"""Charts over checkpoints in the report: what training maximises, next to what it never saw."""

from collections.abc import Mapping

from dalle_ppo.captions.tags import SAFE_TAG
from dalle_ppo.report import plots
from dalle_ppo.runs.metric_table import METRICS, Metric

CHARTS: tuple[dict[str, str], ...] = (
    {"reward_mean": "reference"},
    {"unsafe_rate": "reference", "judge_unsafe_rate": "policy", "heldout_unsafe_rate": "second"},
    {"judge_alignment": "policy"},
    {"clip_similarity": "reference", "heldout_clip_similarity": "second"},
    {"diversity": "policy"},
    {"kl": "policy"},
    {"entropy": "policy"},
    {"image/high_frequency_share": "policy"},
)
"""Each chart's metrics and the CSS class of their lines: grey is part of the reward, colour is held out."""


def checkpoint_cards(evaluation: Mapping) -> list[dict]:
    """Charts over evaluated checkpoints: `{"title", "note", "legend", "svg"}`; empty below three."""
    points = evaluation.get("curve") or []
    if len(points) < 3:
        return []
    iterations = [point["iteration"] for point in points]
    cards = []
    for styles in CHARTS:
        first = METRICS[next(iter(styles))]
        lines, legend = [], []
        sides = [_group(evaluation[point["side"]], first) for point in points]
        for name, style in styles.items():
            values = [side.get(name) for side in sides]
            if any(value is not None for value in values):
                lines.append((style, values, [(side.get("intervals") or {}).get(name) for side in sides]))
                legend.append((style, METRICS[name].by))
        title, tick = f"{first.label} over checkpoints", plots.tick_of(first.unit)
        svg = plots.checkpoint_lines(iterations, lines, title, tick)
        if svg is not None:
            cards.append({"title": first.label, "note": _note(first), "legend": legend, "svg": svg})
    return cards


def _group(side: Mapping, metric: Metric) -> Mapping:
    return side[SAFE_TAG] if metric.safe_only and SAFE_TAG in side else side["overall"]


def _note(metric: Metric) -> str:
    where = ", on safe captions" if metric.safe_only else ""
    return f"{metric.chart_note[0].upper()}{metric.chart_note[1:]}{where}."

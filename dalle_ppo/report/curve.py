"""Measures over checkpoints in the report: what training maximises beside what it never saw."""

from collections.abc import Mapping
from dataclasses import dataclass

from dalle_ppo.evaluation.verdict import SAFE_TAG
from dalle_ppo.report import plots


@dataclass(frozen=True)
class Card:
    """A chart over checkpoints.

    Args:
        title, note: text.
        lines: metric, CSS class, name in the legend; grey is part of the reward, colour is held out.
        safe_only: whether only safe captions count.
        tick: how values are written.
    """

    title: str
    note: str
    lines: tuple[tuple[str, str, str], ...]
    safe_only: bool = False
    tick: plots.Tick = plots.plain


CARDS = (
    Card(
        "Reward",
        "Mean raw score: what training maximises.",
        (("reward_mean", "reference", "reward"),),
    ),
    Card(
        "Unsafe images",
        "Share of all images.",
        (
            ("unsafe_rate", "reference", "detector of the reward"),
            ("judge_unsafe_rate", "policy", "judge"),
            ("heldout_unsafe_rate", "second", "held-out detector"),
        ),
        tick=plots.percent_tick,
    ),
    Card(
        "Named icons drawn",
        "By the judge, on safe captions.",
        (("judge_alignment", "policy", "judge"),),
        safe_only=True,
        tick=plots.percent_tick,
    ),
    Card(
        "CLIP similarity",
        "On safe captions.",
        (
            ("clip_similarity", "reference", "CLIP of the reward"),
            ("heldout_clip_similarity", "second", "held-out CLIP"),
        ),
        safe_only=True,
    ),
    Card("Diversity", "Within a caption.", (("diversity", "policy", "diversity"),)),
    Card("KL from the reference", "Exact, nats an image.", (("kl", "policy", "KL"),)),
    Card("Entropy", "Nats an image.", (("entropy", "policy", "entropy"),)),
    Card(
        "Fine detail",
        "Share of the brightness's variance that is fine, on safe captions; noise raises it.",
        (("image/high_frequency_share", "policy", "share"),),
        safe_only=True,
        tick=plots.percent_tick,
    ),
)


def checkpoint_cards(evaluation: Mapping) -> list[dict]:
    """Charts over the evaluated checkpoints: `{"title", "note", "legend", "svg"}`; none below three."""
    points = evaluation.get("curve") or []
    if len(points) < 3:
        return []
    iterations = [point["iteration"] for point in points]
    cards = []
    for card in CARDS:
        sides = [_group(evaluation[point["side"]], card.safe_only) for point in points]
        lines, legend = [], []
        for name, style, label in card.lines:
            values = [side.get(name) for side in sides]
            if any(value is not None for value in values):
                lines.append((style, values, [(side.get("intervals") or {}).get(name) for side in sides]))
                legend.append((style, label))
        svg = plots.checkpoint_lines(iterations, lines, f"{card.title} over checkpoints", card.tick)
        if svg is not None:
            cards.append({"title": card.title, "note": card.note, "legend": legend, "svg": svg})
    return cards


def _group(side: Mapping, safe_only: bool) -> Mapping:
    return side[SAFE_TAG] if safe_only and SAFE_TAG in side else side["overall"]

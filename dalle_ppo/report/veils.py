"""Which pictures of the page are blurred until clicked: all that anything has called unsafe."""

import numpy as np

from dalle_ppo.evaluation.columns import Columns

PROBABILITY = "nsfw_probability"  # a column only if the reward has an nsfw term
CHECKS = {
    PROBABILITY: "detector",
    "heldout_nsfw_probability": "held-out detector",
    "judge_unsafe": "judge",
}
"""Columns that tell which pictures are unsafe, and who says so."""


def checked_by(rows: Columns) -> list[str]:
    """Who has checked the pictures, for people; empty if nobody has."""
    return [CHECKS[name] for name in _known(rows)]


def called_unsafe(rows: Columns, upper: float) -> np.ndarray:
    """Which pictures are called unsafe by any of those who have checked them.

    Args:
        rows: columns of one side.
        upper: a detector calls pictures unsafe whose probability is above, or missing.

    Returns:
        bool [N].
    """
    unsafe = np.zeros(len(rows.get("reward", ())), dtype=bool)
    for name, column in _known(rows).items():
        unsafe |= ~(column <= (0 if name == "judge_unsafe" else upper))
    return unsafe


def _known(rows: Columns) -> dict[str, np.ndarray]:
    """The columns of those who have checked the pictures, as numbers with NaN for missing ones.

    The reward's detector counts even if it has no number at all: then something is wrong with it.
    """
    columns = {name: _numbers(rows[name]) for name in CHECKS if name in rows}
    return {
        name: column for name, column in columns.items() if name == PROBABILITY or np.isfinite(column).any()
    }


def _numbers(column: np.ndarray) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in column])

"""What the untrained reference achieves by drawing more images: the baselines that training has to beat.

The columns of a side are arrays with one entry per image; see `columns`. Both baselines start from the images
that the reference draws anyway, so they are paired with reference and policy by caption, sample and noise.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dalle_ppo.evaluation.columns import Columns

Redraw = Callable[[np.ndarray, int], Columns]
"""`(rows int64 [K], attempt)` -> the columns of K new images of the same captions, drawn from other noise."""

DEFAULT_TRIES = 8
DRAWN = "images_drawn"
_NAME = re.compile(r"(best_of|reject)(?:_(\d+))?")


@dataclass(frozen=True)
class Baseline:
    """A way to draw several images with the reference and keep one.

    Args:
        name: as requested and reported, such as "best_of_4".
        kind: "best_of" keeps the image with the highest reward; "reject" draws again while the detector's
            probability is above the upper threshold.
        tries: images drawn at most for each one kept.
    """

    name: str
    kind: str
    tries: int


def parse_baselines(text: str) -> list[Baseline]:
    """Reads "reject,best_of_4".

    Raises:
        ValueError: for an unknown name; the message says which names are allowed.
    """
    found = []
    for name in dict.fromkeys(part.strip() for part in text.split(",")):
        match = _NAME.fullmatch(name)
        kind, number = match.groups() if match else (None, None)
        tries = int(number) if number else DEFAULT_TRIES
        if kind is None or tries < 2 or (kind == "best_of" and number is None):
            raise ValueError(
                f"--baselines: {name!r} is not a baseline; use reject ({DEFAULT_TRIES} tries at most), "
                "reject_N or best_of_N with N of 2 or more, separated by commas"
            )
        found.append(Baseline(name, kind, tries))
    return found


def best_of(first: Columns, redraw: Redraw, tries: int) -> dict[str, np.ndarray]:
    """The image with the highest reward among `tries`; the first one if several are equal.

    Args:
        first: columns of the reference's own images.
        redraw: draws new images.
        tries: images drawn for each one kept.

    Returns:
        The columns, with the number of images drawn for each.
    """
    kept, rows = _copy(first), np.arange(len(first["reward"]))
    for attempt in range(1, tries):
        again = redraw(rows, attempt)
        better = again["reward"] > kept["reward"]
        _put(kept, rows[better], again, better)
        kept[DRAWN] += 1
    return kept


def reject(first: Columns, redraw: Redraw, tries: int, threshold: float) -> dict[str, np.ndarray]:
    """Draws again while the detector calls the image unsafe.

    If no try passes, the one with the lowest probability is kept.

    Args:
        first: columns of the reference's own images.
        redraw: draws new images.
        tries: images drawn at most for each one kept.
        threshold: images with a detector probability above it are rejected.

    Returns:
        The columns, with the number of images drawn for each.

    Raises:
        ValueError: if the reward gives no NSFW probability.
    """
    if not np.isfinite(first.get("nsfw_probability", np.nan)).all():
        raise ValueError(
            "--baselines: reject needs the reward term nsfw, which this run lacks; use best_of_N"
        )
    kept = _copy(first)
    for attempt in range(1, tries):
        rows = np.flatnonzero(kept["nsfw_probability"] > threshold)
        if not len(rows):
            break
        again = redraw(rows, attempt)
        better = again["nsfw_probability"] < kept["nsfw_probability"][rows]
        _put(kept, rows[better], again, better)
        kept[DRAWN][rows] += 1
    return kept


def _copy(columns: Columns) -> dict[str, np.ndarray]:
    return {name: values.copy() for name, values in columns.items()}


def _put(kept: dict[str, np.ndarray], rows: np.ndarray, again: Columns, chosen: np.ndarray) -> None:
    for name, values in kept.items():
        if name != DRAWN:
            # A part that a term reported for the first images only is unknown for these.
            values[rows] = again[name][chosen] if name in again else np.nan

"""Reads what a model answers; what cannot be read is kept."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dalle_ppo.preferences.answer import now

KEPT = 2000
"""Characters of an unreadable reply that are kept."""


@dataclass(frozen=True)
class Judgement:
    """What a readable reply says of each picture, in the order shown.

    Args:
        ranks: 1 is best; equal numbers are a tie.
        harm: in 0..1; None if the prompt does not ask for it.
    """

    ranks: tuple[int, ...]
    harm: tuple[float, ...] | None


@dataclass(frozen=True)
class Unread:
    """A reply that could not be read, as a row.

    Args:
        set_id, caption, images, rater, model, prompt_sha256: as in `Answer`.
        reply: its beginning.
        why: what is wrong with it.
        time: when it came.
    """

    set_id: str
    caption: str
    images: tuple[str, ...]
    rater: str
    model: str
    prompt_sha256: str
    reply: str
    why: str
    time: str = field(default_factory=now)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(self.images))
        object.__setattr__(self, "reply", self.reply[:KEPT])


def read_reply(text: str, count: int) -> Judgement:
    """Reads the last JSON object with ranks; words and code fences around it are ignored.

    Args:
        text: the reply.
        count: how many pictures were shown.

    Raises:
        ValueError: there is none, or its lists do not fit; the message says what is wrong.
    """
    found = [value for value in _objects(text) if "ranks" in value]
    if not found:
        raise ValueError('holds no JSON object with "ranks"')
    ranks = _numbers(found[-1], "ranks", count)
    if any(rank != int(rank) or rank < 1 for rank in ranks):
        raise ValueError(f"ranks are {ranks}, not whole numbers from 1")
    if found[-1].get("harm") is None:
        return Judgement(tuple(map(int, ranks)), None)
    harm = _numbers(found[-1], "harm", count)
    if any(not 0 <= value <= 1 for value in harm):
        raise ValueError(f"harm is {harm}, not in 0..1")
    return Judgement(tuple(map(int, ranks)), tuple(map(float, harm)))


def _objects(text: str) -> list[dict]:
    """All JSON objects in a text."""
    decoder, found, place = json.JSONDecoder(), [], text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            value, end = None, place + 1
        if isinstance(value, dict):
            found.append(value)
        place = text.find("{", end)
    return found


def _numbers(found: dict, name: str, count: int) -> Sequence[float]:
    values = found[name]
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name} is {str(values)[:80]}, not a list with one number for each of {count}")
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in values):
        raise ValueError(f"{name} is {str(values)[:80]}, not a list of numbers")
    return values

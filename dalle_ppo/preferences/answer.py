"""What is known of a picture, and one answer to a set of pictures."""

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

KINDS = ("ranking", "rating", "skip", "undo")
SOURCES = ("person", "model", "simulated", "imported")
TEXTS = ("caption", "rater", "set_id", "id", "time")
TEXTS_OR_NONE = ("undoes", "model", "prompt_sha256")
LARGEST = 1e15
"""Of ranks, ratings and harm: what int64 and float64 hold exactly, with room to spare."""


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_id() -> str:
    """A name that no other row has."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Image:
    """A picture of the store.

    Args:
        key: SHA-256 of its PNG file, in hex.
        caption: what it shall show.
        weights: SHA-256 of the policy's weights; None if unknown.
        side: "policy", "reference", "imported" or the like.
        noise: what its sampling noise is a function of: `seed`, `stream`, `caption_id`, `sample`.
        flagged: whether the run's detector finds it unsafe.
    """

    key: str
    caption: str
    weights: str | None = None
    side: str = "policy"
    noise: Mapping[str, Any] | None = None
    flagged: bool = False

    def __post_init__(self) -> None:
        _check(_is_key(self.key), f"an image's key is {self.key!r}; it must be a SHA-256 in hex")
        _check(isinstance(self.caption, str), f"an image's caption is {self.caption!r}; it must be text")


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one caption, for one answer.

    Args:
        id: depends on the caption, the weights and the noise alone.
        caption: what they shall show.
        images: keys in the store, in the order of a first showing.
        chosen: it was picked from several for what an answer would tell, so it is harder than others.
    """

    id: str
    caption: str
    images: tuple[str, ...]
    chosen: bool = False

    @property
    def differs(self) -> bool:
        """Whether at least two pictures differ, so that there is something to say about the set."""
        return len(set(self.images)) > 1


@dataclass(frozen=True)
class Answer:
    """One answer; only what fits its kind is given.

    Args:
        caption: the caption of the set.
        images: keys of the pictures as they were shown, from left to right.
        kind: one of `KINDS`. A pair is a ranking of two.
        rater: who answered; a model answers under its name.
        source: one of `SOURCES`.
        set_id: which set of pictures it was; a set that is shown again keeps it.
        ranks: of a ranking: one for each picture, 1 is best, equal numbers are a tie.
        ratings: of a rating: one for each picture, the higher the better.
        harm: how harmful each picture is, in 0..1; None if nobody was asked.
        all_bad: none of the pictures is any good.
        undoes: of an undo: `id` of the answer that its rater takes back.
        seconds: how long the answer took.
        model: the model that was asked.
        prompt_sha256: hash of the prompt that it was asked with.
        round: round of an alignment.
        id: of this row.
        time: when it was answered, ISO 8601 in UTC.

    Raises:
        ValueError: a value breaks these rules.
    """

    caption: str
    images: tuple[str, ...]
    kind: str
    rater: str
    source: str
    set_id: str
    ranks: tuple[int, ...] | None = None
    ratings: tuple[float, ...] | None = None
    harm: tuple[float, ...] | None = None
    all_bad: bool = False
    undoes: str | None = None
    seconds: float = 0.0
    model: str | None = None
    prompt_sha256: str | None = None
    round: int | None = None
    id: str = field(default_factory=new_id)
    time: str = field(default_factory=now)

    def __post_init__(self) -> None:
        for name in ("images", "ranks", "ratings", "harm"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        for name in TEXTS + TEXTS_OR_NONE:
            value = getattr(self, name)
            fits = isinstance(value, str) or (value is None and name in TEXTS_OR_NONE)
            _check(fits, f"{name} is {value!r}; it must be text")
        _check(self.kind in KINDS, f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        _check(self.source in SOURCES, f"source is {self.source!r}; it must be one of {', '.join(SOURCES)}")
        _check(bool(self.rater.strip()), "rater is empty; give a name")
        _check((self.kind == "undo") == bool(self.undoes), "undoes is given for an undo, and only for one")
        _check(all(map(_is_key, self.images)), "images must be keys of pictures, each a SHA-256 in hex")
        _check(0 <= self.seconds < math.inf, f"seconds is {self.seconds}; it must be 0 or a positive number")
        self._check_numbers()

    def _check_numbers(self) -> None:
        n = len(self.images)
        for name, kind in (("ranks", "ranking"), ("ratings", "rating")):
            given = getattr(self, name) is not None
            _check((self.kind == kind) == given, f"{name} are given for a {kind}, and only for one")
        _check(self.kind != "ranking" or n >= 2, f"a ranking has at least 2 pictures; this one has {n}")
        for name in ("ranks", "ratings", "harm"):
            values = getattr(self, name)
            _check(
                values is None or len(values) == n,
                f"{name} is {values}; it needs one for each of {n} images",
            )
            _check(all(map(_is_number, values or ())), f"{name} is {values}; it must hold numbers")
        ranks = self.ranks or ()
        _check(all(isinstance(r, int) and r >= 1 for r in ranks), f"ranks is {ranks}; they count from 1")


def _check(fits: bool, message: str) -> None:
    if not fits:
        raise ValueError(f"answer: {message}" if not message.startswith("an image") else message)


def _is_key(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST

"""Reads what the browser sends; nothing of it is trusted."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from dalle_ppo.preferences.answer import Answer

NAME_LENGTH = 60
CAPTION_LENGTH = 10_000
LONGEST = 3600.0
"""Seconds for an answer; the page stops its clock long before."""
DAY = 86400.0


def read_rater(value: Any) -> str:
    """A rater's name, with its spaces put in order.

    Raises:
        ValueError: it is empty, too long, or no text.
    """
    name = " ".join(value.split()) if isinstance(value, str) else ""
    if not name or len(name) > NAME_LENGTH or not name.isprintable():
        raise ValueError(f"a rater's name has 1 to {NAME_LENGTH} characters; type another one")
    return name


def read_id(value: Any) -> str:
    """The id of a row, which the browser makes up: a row that is sent twice is kept once.

    Raises:
        ValueError: it is no id.
    """
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{32}", value):
        raise ValueError(f"an answer's id is {str(value)[:40]!r}; it must be 32 hex digits; reload the page")
    return value


def read_answer(body: Any) -> Answer:
    """The answer that a request holds.

    Args:
        body: decoded JSON.

    Raises:
        ValueError: it is no answer.
    """
    if not isinstance(body, dict):
        raise ValueError("the request holds no answer; reload the page")
    rater, row_id = read_rater(body.get("rater")), read_id(body.get("id"))
    if body.get("kind") not in ("ranking", "skip"):
        raise ValueError(f"kind is {str(body.get('kind'))[:40]!r}; it must be ranking or skip")
    ranks = body.get("ranks")
    try:
        waited = min(max(float(body.get("waited", 0)), 0.0), 30 * DAY)
        return Answer(
            caption=_text(body, "caption", CAPTION_LENGTH),
            images=tuple(body["images"]),
            kind=body["kind"],
            rater=rater,
            source="person",
            set_id=_text(body, "set_id", 64),
            ranks=None if ranks is None else tuple(ranks),
            all_bad=body.get("all_bad") is True,
            seconds=min(max(float(body.get("seconds", 0)), 0.0), LONGEST),
            id=row_id,
            time=(datetime.now(UTC) - timedelta(seconds=waited)).isoformat(timespec="milliseconds"),
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"the request holds no answer ({error}); reload the page") from None


def _text(body: dict[str, Any], name: str, longest: int) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise ValueError(f"{name} must be a text of at most {longest} characters; reload the page")
    return value

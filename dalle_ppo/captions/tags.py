"""Caption tags: the name for a missing one, and the order in which they are listed."""

from collections.abc import Iterable

UNTAGGED = "UNTAGGED"
"""The tag of a caption that has none."""
TAGS = ("UNLIKELY", "UNSURE", "NSFW")
"""LAION's tags, from the safest to the least safe."""
SAFE_TAG, UNSAFE_TAG = TAGS[0], TAGS[-1]


def in_order(tags: Iterable[str]) -> list[str]:
    """The distinct tags: LAION's first, from the safest on, then the others by name."""
    present = set(tags)
    return [tag for tag in TAGS if tag in present] + sorted(present - set(TAGS))


def named(tag: object) -> str:
    """A tag as text; None becomes `UNTAGGED`."""
    return UNTAGGED if tag is None else str(tag)

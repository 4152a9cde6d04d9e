"""The tags of captions: what a missing one is called, and in which order people read them."""

from collections.abc import Iterable

UNTAGGED = "UNTAGGED"
"""The tag of a caption that has none."""
TAGS = ("UNLIKELY", "UNSURE", "NSFW")
"""LAION's tags, from the safest to the least safe."""
SAFE_TAG, UNSAFE_TAG = TAGS[0], TAGS[-1]


def in_order(tags: Iterable[str]) -> list[str]:
    """The distinct tags: LAION's first, in their order, then the others by name."""
    present = set(tags)
    return [tag for tag in TAGS if tag in present] + sorted(present - set(TAGS))


def named(tag: object) -> str:
    """A tag as text; None is `UNTAGGED`."""
    return UNTAGGED if tag is None else str(tag)

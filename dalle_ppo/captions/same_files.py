"""Whether the files behind a saved position are still the same."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle_ppo.captions.shards import Shard, UnreadableShard

MOST_LISTED = 1000
"""Of more files, a position holds a hash: it is saved often."""


def files_of(shards: Sequence[Shard], remote: bool) -> dict[str, Any]:
    """What a position says about its files, as JSON types.

    Args:
        shards: the files.
        remote: whether opening one needs the network; then numbers of rows are not looked up.

    Returns:
        `source`: a hash of the names without folders. `files`: name and number of rows of each, None where it
        is not known; of many files, a hash of the names. Names of remote ones begin with the data set's.
    """
    # A folder on this machine may be moved.
    names = [_without_revision(shard.name) if remote else Path(shard.name).name for shard in shards]
    counts = [None if remote else _rows(shard) for shard in shards]
    listed = [list(pair) for pair in zip(names, counts, strict=True)]
    return {
        "source": _hash(Path(name).name for name in names),
        "files": listed if len(listed) <= MOST_LISTED else _hash(names),
    }


def difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What is different about the files, for a message; None if nothing is.

    Args:
        saved, now: hold what `files_of` returns. Positions of version 0.1 have no `files`.
    """
    before, after = saved.get("files"), now.get("files")
    if isinstance(before, list) and isinstance(after, list):
        return _first_difference(before, after)
    if saved.get("source") != now["source"] or (before is not None and before != after):
        now_named = f", not {_listed(name for name, _ in after)}" if isinstance(after, list) else ""
        return f"they were others{now_named}"
    return None


def _first_difference(before: list, after: list) -> str | None:
    old, new = (Counter(Path(name).name for name, _ in files) for files in (before, after))
    if old != new:
        changes = (("missing", old - new), ("new", new - old))
        return ", ".join(f"{what}: {_listed(names.elements())}" for what, names in changes if names)
    for (name_before, rows_before), (name, rows) in zip(before, after, strict=True):
        # A data set of the hub may have been downloaded since, into a folder of any name.
        both_remote = "/" in name_before and "/" in name
        if name_before != name and (both_remote or Path(name_before).name != Path(name).name):
            return f"{name} stands where {name_before} was"
        if rows_before != rows and None not in (rows_before, rows):
            return f"{name} has {rows:,} rows, and had {rows_before:,}"
    return None


def _listed(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _rows(shard: Shard) -> int | None:
    # A source of somebody else's may have shards that do not know.
    return None if isinstance(shard, UnreadableShard) else getattr(shard, "num_rows", None)


def _without_revision(name: str) -> str:
    """OWNER/NAME/FILE, of a name such as OWNER/NAME@REVISION/FOLDER/FILE."""
    owner, data_set, *rest = name.split("/")
    return "/".join([owner, data_set.partition("@")[0], *rest[-1:]])


def _hash(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

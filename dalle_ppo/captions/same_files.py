"""Whether the files behind a saved position are still the same."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from dalle_ppo.captions.shards import Shard, UnreadableShard

MOST_LISTED = 1000
"""Of more files, a position holds a hash: it is saved often."""
_REVISION = re.compile(r"([^/]+/[^/@]+)@(refs/[^/]+/)?[^/]+/")
"""What a name on the hub begins with if it has a revision, such as `main` or `refs/convert/parquet`."""


def files_of(shards: Sequence[Shard], remote: bool) -> dict[str, Any]:
    """What a position says about its files, as JSON types.

    Args:
        shards: the files.
        remote: whether opening one needs the network; then numbers of rows are not looked up.

    Returns:
        `source`: a hash of the names without folders. `files`: name and number of rows of each, None where it
        is not known; of many files, a hash of the names. Names of remote ones begin with the data set's, and
        those of local ones with the first folder that not all of them are in.
    """
    names = [place_of(shard) for shard in shards]
    names = [_REVISION.sub(r"\1/", name, count=1) for name in names] if remote else _below_all(names)
    counts = [None if remote else _rows(shard) for shard in shards]
    listed = [list(pair) for pair in zip(names, counts, strict=True)]
    return {
        "source": _hash(Path(name).name for name in names),
        "files": listed if len(listed) <= MOST_LISTED else _hash(names),
    }


def place_of(shard: Shard) -> str:
    """The name that decides a file's place among the others."""
    return getattr(shard, "stands_for", None) or shard.name


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
        if not _same_name(name_before, name):
            return f"{name} has taken the place of {name_before}"
        if rows_before != rows and None not in (rows_before, rows):
            return f"{name} has {rows:,} rows, and had {rows_before:,}"
    return None


def _same_name(one: str, other: str) -> bool:
    """Whether two names may be of one file: all parts of the shorter one are in the other, in their order.

    Since the position was saved, a data set of the hub may have been downloaded, into a folder of any name.
    """
    short, long = sorted((one.split("/"), other.split("/")), key=len)
    rest = iter(long)
    return short[-1] == long[-1] and all(part in rest for part in short)


def _listed(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _rows(shard: Shard) -> int | None:
    if isinstance(shard, UnreadableShard) or place_of(shard) != shard.name:
        return None
    try:
        return getattr(shard, "num_rows", None)  # shards of somebody else's may not know
    except ValueError:
        return None  # whoever draws from the file says what is wrong


def _below_all(names: Sequence[str]) -> list[str]:
    """Names without the folders that all have in common, because a folder on this machine may be moved."""
    parts = [Path(name).as_posix().split("/") for name in names]
    levels = zip(*(folders for *folders, _ in parts), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    return ["/".join(of_one[common:]) for of_one in parts]


def _hash(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

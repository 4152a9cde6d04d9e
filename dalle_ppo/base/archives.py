"""Bounds for zip archives from strangers: what they say they unpack to, against what they are."""

import zipfile
from pathlib import Path

FREE_BYTES = 64 << 20
MAX_RATIO = 20
"""Weights hardly compress: an archive may unpack to `FREE_BYTES`, or to this many times its size."""
MAX_ENTRIES = 100_000


def check_unpacked(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses an archive that would unpack to far more than it holds.

    Python's zipfile never gives more bytes of an entry than the archive declares for it.

    Raises:
        ValueError: it declares too much.
    """
    entries = archive.infolist()
    total, limit = sum(e.file_size for e in entries), max(FREE_BYTES, MAX_RATIO * path.stat().st_size)
    if total > limit or len(entries) > MAX_ENTRIES:
        raise ValueError(
            f"{path}: unpacks to {len(entries)} files of {total} bytes, the limit is {MAX_ENTRIES} files of "
            f"{limit} bytes; use an archive of weights only"
        )

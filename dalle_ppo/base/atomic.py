"""Files that are written whole or not at all."""

import os
import re
from collections.abc import Callable
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.\d+\.new(\.\w+)?")
"""Names of files that are being written."""


def atomic_write(path: str | Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Writes a file under a temporary name in the same folder, flushes it to disk and renames it.

    Whatever interrupts this, a reader finds either the old file or the new one, never part of a file.

    Args:
        path: the file; an existing one is replaced. Its folder must exist.
        content: text (written as UTF-8), bytes, or a function that takes a path and writes the file there.
            That path has the suffix of `path`.

    Raises:
        OSError: the file cannot be written. An existing file is unchanged, as after an error in `content`.
    """
    path = Path(path)
    # The process id keeps apart two processes that fetch the same file.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.new{path.suffix}")
    try:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():  # Windows cannot open a folder
        return
    # Windows flushes only files that are open for writing.
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed writers have left in a folder and those below it; nobody may be writing there."""
    for place, _, names in os.walk(folder):
        for name in filter(TEMPORARY.fullmatch, names):
            Path(place, name).unlink(missing_ok=True)

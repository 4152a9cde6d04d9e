"""Files that are written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def atomic_write(path: str | Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Writes a file under a temporary name beside its place, flushes it to disk and renames it.

    Whatever interrupts this, a reader finds the earlier file or the new one, never a part of one.

    Args:
        path: the file; an earlier one is replaced. Its folder must exist.
        content: text (written as UTF-8), bytes, or a function that writes the file it is given the path of.
            That path ends as `path` does.

    Raises:
        OSError: the file cannot be written; the earlier one is unchanged, as after an error in `content`.
    """
    path = Path(path)
    # The process's number keeps two processes that fetch the same file apart.
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
    """Waits until a file, or a folder's list of names, is on the disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():  # Windows cannot open a folder
        return
    # Windows flushes only files that are open for writing.
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

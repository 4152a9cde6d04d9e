"""Keeps a folder to one process at a time, with a lock that ends however the process that holds it ends."""

import errno
import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

LOCK_FILE = ".lock"
BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
"""What operating systems report for a file that another process has locked."""
WINDOWS_BYTE = 1 << 30
"""The byte to lock on Windows: beyond the holder's name, because nobody else can read a locked byte."""
OTHERWISE = "stop it, or name another folder"
TAKEN = -1

_held: set[int] = set()


class Busy(ValueError):
    """Raised if another process holds the lock."""


@contextmanager
def locked(folder: Path, what: str, otherwise: str = OTHERWISE) -> Iterator[None]:
    """Holds the lock of a folder, which is created if it is missing.

    The operating system drops the lock when the process ends, is killed or its machine fails. On a file
    system without locks, a warning is issued instead.

    Args:
        folder: the folder.
        what: its name in the error, such as "run_dir: runs/a".
        otherwise: what the error offers besides waiting.

    Raises:
        Busy: another process holds it; the message names that process.
        ValueError: the file may not be opened, such as another user's.
        OSError: the folder cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, created = folder / LOCK_FILE, []
    try:
        descriptor = _acquire(path, created)
    except PermissionError as error:
        raise _forbidden(path, what) from error
    except OSError as error:
        descriptor = None
        if created:  # not a file that was there: where its holder is, there may be locks
            with suppress(OSError):
                path.unlink()
        warnings.warn(
            f"{what} cannot be locked ({error.strerror}): nothing keeps a second process out of this folder",
            stacklevel=3,
        )
    if descriptor == TAKEN:
        raise _busy(path, what, otherwise)
    try:
        if descriptor is not None:
            _write_holder(descriptor)
        yield
    finally:
        if descriptor is not None:
            _release(descriptor, path)


def refuse_locked(folder: Path, what: str) -> None:
    """Refuses a folder that another process holds, before any work and without leaving anything behind.

    Raises:
        Busy: as in `locked`.
        ValueError: likewise.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR)
    except PermissionError as error:
        raise _forbidden(folder / LOCK_FILE, what) from error
    except OSError:
        return
    with suppress(OSError):
        try:
            busy = not try_lock(descriptor)
        finally:
            os.close(descriptor)
        if busy:
            raise _busy(folder / LOCK_FILE, what, OTHERWISE)


def _acquire(path: Path, created: list[Path]) -> int:
    """Opens and locks the file; returns its descriptor, or TAKEN. Raises OSError where there are no locks.

    Args:
        path: the file.
        created: gets the path if the file was made here.
    """
    patience = 3  # refuse_locked in another process also locks the file for a moment
    while patience:
        descriptor = _open(path, created)
        try:
            free = try_lock(descriptor)
            # Not if the last holder removed the file after it was opened here.
            if free and os.fstat(descriptor).st_ino == _inode(path):
                _held.add(descriptor)
                return descriptor
        finally:
            if descriptor not in _held:
                os.close(descriptor)
        if not free:
            patience -= 1
            time.sleep(0.05)
    return TAKEN


def _open(path: Path, created: list[Path]) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # its holder may remove it meanwhile
    created.append(path)
    return descriptor


def try_lock(descriptor: int) -> bool:
    """Locks an open file; False if another process holds it. OSError where the file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, WINDOWS_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            return False
        raise
    return True


def _release(descriptor: int, path: Path) -> None:
    _held.discard(descriptor)
    if sys.platform == "win32":  # an open file cannot be removed
        os.close(descriptor)
        with suppress(OSError):
            path.unlink()
        return
    # Removed while locked, so that nobody else can lock it first.
    with suppress(OSError):
        if os.fstat(descriptor).st_ino == _inode(path):
            path.unlink()
    os.close(descriptor)


def _inode(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def _write_holder(descriptor: int) -> None:
    started = f"{datetime.now():%Y-%m-%d %H:%M}"
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": started}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(holder).encode())


def _busy(path: Path, what: str, otherwise: str) -> Busy:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # that process is just starting or ending
        who = "another process"
    return Busy(f"{what} is in use by {who}; wait until it has ended, {otherwise}")


def _forbidden(path: Path, what: str) -> ValueError:
    """Whether another user's process holds the file cannot be told, so it counts as held."""
    if not path.exists():
        return ValueError(f"{what} cannot be written to by this user; name another folder")
    return ValueError(
        f"{what} cannot be locked: {path} may not be opened by this user, perhaps because another user's "
        "process works there; let its owner allow that or remove the file, or name another folder"
    )


def _let_go() -> None:
    """Closes the lock file in a forked child, or the lock would outlive a parent that is killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

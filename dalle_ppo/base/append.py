"""Files of JSON rows that only grow: several processes may append, a kill loses a row at most."""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from dalle_ppo.base.lock import Busy, try_lock

PATIENCE = 10.0
"""Seconds to wait for another process that is writing; a row takes it a millisecond."""


Record = TypeVar("Record")


class Home:
    """A folder that the first write creates; one that is gone later is not brought back.

    Otherwise, answers would go to a second folder after somebody has moved the first.

    Args:
        folder: which one.
    """

    def __init__(self, folder: Path):
        self.folder, self._seen = folder, folder.is_dir()

    def ready(self) -> None:
        """Call before each write.

        Raises:
            OSError: the folder was there, and has been moved or removed; or there is a file in its place.
        """
        if not self.folder.is_dir():
            if self._seen:
                raise OSError(
                    f"{self.folder} has been moved or removed while it was in use; all answers up to "
                    "now are in it: start the command again, with its new path"
                )
            if self.folder.exists():
                raise OSError(f"{self.folder} is a file, not a folder; name another place, or move it away")
            self.folder.mkdir(parents=True, exist_ok=True)
        self._seen = True


class RowFile(Generic[Record]):
    """Rows of one file, each a JSON object on a line of its own.

    Args:
        path: the file; the first row creates it and its folder.
        record: turns the values of a row, by name, into a record; raises TypeError or ValueError for others.
    """

    def __init__(self, path: Path, record: Callable[..., Record]):
        self.path = path
        self._home = Home(path.parent)
        self._record = record
        self._guard = threading.RLock()
        self._forget()

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds rows in one write, and waits until they are on disk.

        Raises:
            Busy: another process has kept the file locked for ten seconds.
            OSError: the disk is full, or the file cannot be written. What got there is a torn row, which
                readers skip. Or its folder was there, and has been moved or removed.
        """
        if not rows:
            return
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._home.ready()
        with self._guard:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                _lock(descriptor, self.path)
                # Half a surrogate pair cannot be encoded; a row must not fail for one broken character.
                data = _separator(descriptor) + text.encode(errors="replace")
                if os.write(descriptor, data) < len(data):
                    raise OSError(f"{self.path}: only a part of a row could be written; is the disk full?")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def read(self) -> list[Record]:
        """All rows that can be read, the oldest first; only what is new since the last call is read."""
        with self._guard:
            self._read_on()
            records = list(self._records)
            self._torn_tail = bool(self._tail.strip()) and not self._take(self._tail, records)
            return records

    @property
    def torn(self) -> int:
        """How many rows were left unfinished or are damaged, as of the last `read`."""
        return self._torn + self._torn_tail

    @property
    def unfit(self) -> int:
        """How many whole rows are none of these records, as of the last `read`."""
        return self._unfit

    def _forget(self) -> None:
        self._records: list[Record] = []
        self._offset, self._torn, self._unfit, self._tail, self._torn_tail = 0, 0, 0, b"", False

    def _read_on(self) -> None:
        try:
            if self.path.stat().st_size < self._offset:  # somebody has put another file in its place
                self._forget()
            with self.path.open("rb") as file:
                file.seek(self._offset)
                whole, newline, self._tail = file.read().rpartition(b"\n")
        except FileNotFoundError:
            self._forget()
            return
        self._offset += len(whole) + len(newline)
        for line in whole.split(b"\n"):
            if line.strip() and not self._take(line, self._records):
                self._torn += 1

    def _take(self, line: bytes, records: list[Record]) -> bool:
        """Adds a row to `records`; False if it is not a whole row."""
        row = _parse(line)
        if row is None:
            return False
        try:
            records.append(self._record(**row))
        except (TypeError, ValueError, AttributeError):
            self._unfit += records is self._records
        return True


def _lock(descriptor: int, path: Path) -> None:
    """Locks an open file until it is closed; a file system without locks goes without."""
    deadline = time.monotonic() + PATIENCE
    try:
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                raise Busy(f"{path} is locked by another process for {PATIENCE:g} seconds; end that process")
            time.sleep(0.002)
    except OSError:
        return


def _separator(descriptor: int) -> bytes:
    """A line break if the last row has none because its writer was killed: no row is glued to it."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size == 0:
        return b""
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return b"" if os.read(descriptor, 1) == b"\n" else b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # also what is not UTF-8
        return None
    return row if isinstance(row, dict) else None

"""Writes, reads and truncates metrics.jsonl, which holds one JSON object per iteration.

A run may go on for a year, so that only `read_metrics` holds all lines at once.
"""

import json
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from dalle_ppo.base.atomic import flush
from dalle_ppo.runs.pictures import image_grid

METRICS_FILE = "metrics.jsonl"
NEWEST = 100
"""Iterations that a resumed run looks at."""


class MetricsWriter:
    """Writes a run's metrics.jsonl and TensorBoard events; use as a context manager or call `close`.

    Args:
        run_dir: the run's folder.
        resume_iteration: finished iterations to keep; later lines of metrics.jsonl are cut off and later
            TensorBoard events are hidden. 0 starts from scratch.
        tensorboard: whether to write TensorBoard events; otherwise the package is not imported.
    """

    def __init__(self, run_dir: Path, resume_iteration: int = 0, tensorboard: bool = True) -> None:
        self.path = Path(run_dir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        last = truncate_metrics(self.path, resume_iteration)
        self._board = None
        if tensorboard:
            from dalle_ppo.runs.tensorboard import Board

            self._board = Board(run_dir, last["iteration"] + 1 if last else None)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def write(self, metrics: Mapping[str, object]) -> None:
        """Append one iteration.

        Args:
            metrics: `iteration` and scalars (Python, numpy or torch); NaN and infinity become null.
        """
        record = {name: plain_value(value) for name, value in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        if self._board is not None:
            self._board.write(record)

    def write_histograms(self, iteration: int, values: Mapping[str, np.ndarray]) -> None:
        """Write histograms of per-image values, e.g. {"reward": [B]}; NaN is left out."""
        if self._board is not None:
            self._board.write_histograms(iteration, values)

    def write_images(self, iteration: int, name: str, images: np.ndarray, columns: int | None = None) -> None:
        """Write one grid of images, uint8 [N, H, W, 3], row by row; the grid is square without `columns`."""
        if self._board is not None:
            self._board.write_grid(iteration, name, image_grid(images, columns))

    def flush(self) -> None:
        """Wait until all written so far is on disk, as a checkpoint must not be ahead of its metrics."""
        flush(self.path)  # fails if somebody has removed the run: nothing may be saved beside missing metrics
        if self._board is not None:
            self._board.writer.flush()

    def close(self) -> None:
        """Flush and release the files."""
        if self._board is not None:
            self._board.writer.close()
            self._board = None


class SilentWriter(MetricsWriter):
    """Writes nothing, as those of several processes do that leave the files to the first."""

    def __init__(self) -> None:
        self._board = None

    def write(self, metrics: Mapping[str, object]) -> None:
        """Writes nothing."""

    def flush(self) -> None:
        """Has nothing to wait for."""


def read_metrics(path: Path) -> list[dict]:
    """The iterations in metrics.jsonl; ignores a last line that was cut off; a missing file counts as empty.

    Raises:
        ValueError: a line before the last is not a JSON object.
    """
    return list(_records(path))


def read_columns(path: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Some numbers of all iterations, as `read_metrics` reads them.

    Args:
        path: of metrics.jsonl.
        wanted: which names.

    Returns:
        float64 [N] by name; NaN where an iteration has no number.

    Raises:
        ValueError: a line before the last is not a JSON object.
    """
    columns: dict[str, array] = {}
    for number, record in enumerate(_records(path)):
        for name in record:
            if name not in columns and wanted(name):
                columns[name] = array("d", [math.nan]) * number
        for name, column in columns.items():
            value = record.get(name)
            column.append(value if isinstance(value, int | float) else math.nan)
    return {name: np.frombuffer(column, dtype=np.float64) for name, column in columns.items()}


def count_metrics(path: Path) -> int:
    """How many iterations metrics.jsonl holds, without a last line that was cut off.

    Raises:
        ValueError: a line before the last is not a JSON object.
    """
    return sum(1 for _ in _whole_lines(path))


def newest_metrics(path: Path, iterations: int, count: int = NEWEST) -> list[dict]:
    """The last few of the first `iterations` iterations in metrics.jsonl.

    Raises:
        ValueError: the file holds fewer, so a resumed run would leave a gap; or it is damaged.
    """
    return _kept(path, iterations, count)[1]


def truncate_metrics(path: Path, iterations: int) -> dict | None:
    """Cuts the file off after the first iterations, at once, and returns the last of them.

    Raises:
        ValueError: as `newest_metrics`; the file is then unchanged.
    """
    end, last = _kept(path, iterations, 1)
    path.touch()
    with path.open("rb+") as file:
        file.truncate(end)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):
            file.write(b"\n")
    flush(path)
    return last[0] if last else None


def _kept(path: Path, iterations: int, count: int) -> tuple[int, list[dict]]:
    """Where the first iterations end in the file, and the last few of them."""
    end, held, lines = 0, 0, deque(maxlen=count)
    for line in _whole_lines(path) if iterations else ():
        end, held = end + len(line), held + 1
        lines.append(line)
        if held == iterations:
            break
    if held < iterations:
        raise ValueError(
            f"{path}: holds {held} iterations, but the checkpoint is at {iterations}; "
            "resume from an earlier checkpoint or start over with --overwrite"
        )
    last = [_parsed(line) for line in lines]
    if None in last:
        raise _no_object(path, held - len(last) + last.index(None) + 1)
    return end, last


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of metrics.jsonl, without the last if it was cut off; does not look inside of them.

    Raises:
        ValueError: a line before the last is not a JSON object, as far as its ends tell.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        damaged = 0
        for number, line in enumerate(file, start=1):
            if damaged:
                raise _no_object(path, damaged)
            whole = line.startswith(b"{") and line.rstrip().endswith(b"}")
            if whole and (line.endswith(b"\n") or _parsed(line) is not None):
                yield line
            else:
                damaged = number


def _records(path: Path) -> Iterator[dict]:
    """The iterations in metrics.jsonl, one at a time."""
    damaged = 0
    for number, line in enumerate(_whole_lines(path), start=1):
        if damaged:
            raise _no_object(path, damaged)
        record = _parsed(line)
        if record is None:
            damaged = number
        else:
            yield record


def _no_object(path: Path, number: int) -> ValueError:
    return ValueError(f"{path}: line {number} is not a JSON object; delete the line or start a new run")


def _parsed(line: bytes) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def plain_value(value):
    """A value for JSON: numpy and torch scalars become Python numbers, NaN and infinity become None."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"a metric must be a scalar, not {type(value).__name__}")

"""Writes, reads and truncates metrics.jsonl, which holds one JSON object per iteration."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dalle_ppo.base.atomic import atomic_write, flush
from dalle_ppo.runs.pictures import image_grid

METRICS_FILE = "metrics.jsonl"


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
        kept = truncate_metrics(self.path, resume_iteration)
        self._board = None
        if tensorboard:
            from dalle_ppo.runs.tensorboard import Board

            self._board = Board(run_dir, kept[-1]["iteration"] + 1 if kept else None)

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
    if not path.exists():
        return []
    records, lines = [], path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines):
            raise ValueError(
                f"{path}: line {number} is not a JSON object; delete the line or start a new run"
            )
    return records


def first_metrics(path: Path, iterations: int) -> list[dict]:
    """The first `iterations` iterations in metrics.jsonl.

    Raises:
        ValueError: the file holds fewer, so a resumed run would leave a gap.
    """
    records = read_metrics(path)[:iterations]
    if len(records) < iterations:
        raise ValueError(
            f"{path}: holds {len(records)} iterations, but the checkpoint is at {iterations}; "
            "resume from an earlier checkpoint or start over with --overwrite"
        )
    return records


def truncate_metrics(path: Path, iterations: int) -> list[dict]:
    """Atomically truncate the file to what `first_metrics` returns, and return it."""
    records = first_metrics(path, iterations)
    atomic_write(path, "".join(json.dumps(record) + "\n" for record in records))
    return records


def plain_value(value):
    """A value for JSON: numpy and torch scalars become Python numbers, NaN and infinity become None."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"a metric must be a scalar, not {type(value).__name__}")

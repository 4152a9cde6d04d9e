"""The files of an evaluation: rows, thumbnails, and finished batches."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.evaluation.columns import Columns
from dalle_ppo.evaluation.galleries import gallery_rows

BOOLEANS = ("judge_unsafe", "judge_unrecognised")


def read_batch(path: Path) -> Columns | None:
    """Reads what `write_batch` wrote; None if the file is absent or damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def write_batch(path: Path, columns: Columns) -> None:
    """Writes one finished batch atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda new: np.savez(new, **columns))


def write_rows(path: Path, sides: Mapping[str, Columns]) -> None:
    """Writes one parquet row per image and side, atomically; missing values become null."""
    tables = []
    for name, rows in sides.items():
        columns = {"model": pa.array([name] * len(rows["reward"]))}
        for key, values in rows.items():
            if key in BOOLEANS:
                values = [None if np.isnan(v) else bool(v) for v in values]
            columns[key] = pa.array(values, from_pandas=True)
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables, promote_options="permissive")
    atomic_write(path, lambda new: pq.write_table(table, new))


def random_rows(num_rows: int, count: int = 200) -> np.ndarray:
    """The rows whose pictures an evaluation keeps whatever they show, int64, in random order."""
    return np.random.default_rng(0).choice(num_rows, size=min(num_rows, count), replace=False)


def write_thumbnails(
    path: Path, reference: Columns, policy: Columns, decode: Callable[[str, np.ndarray], np.ndarray]
) -> None:
    """Writes the pictures that the report shows, plus a random selection, of both sides, atomically.

    Args:
        path: the file to write.
        reference, policy: rows of the two sides.
        decode: (side, rows int64 [K]) -> uint8 [K, H, W, 3].
    """
    chosen = {int(row) for rows in gallery_rows(reference, policy).values() for row in rows}
    rows = np.array(sorted(chosen | set(random_rows(len(reference["reward"])).tolist())))
    sides = {side: decode(side, rows) for side in ("reference", "policy")}
    atomic_write(path, lambda new: np.savez_compressed(new, rows=rows, **sides))

"""Reads the files of a run for the report; a missing or broken file does not affect the others."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dalle_ppo.base.one_line import one_line
from dalle_ppo.config.safe_yaml import read_yaml
from dalle_ppo.runs.metrics import METRICS_FILE, read_columns


@dataclass
class RunFiles:
    """The files of a run that could be read; every part may be empty.

    Attributes:
        config_text, config: the resolved configuration.
        metrics: the columns of metrics.jsonl that the report shows, float64 [N] each.
        evaluation: the content of evaluation.json.
        reference, policy: columns of evaluation/images.parquet by side, in the same order.
        pictures: (reference, policy) uint8 [H, W, 3] by row.
        problems: one line for each file that exists but cannot be used.
    """

    config_text: str = ""
    config: dict = field(default_factory=dict)
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    evaluation: dict = field(default_factory=dict)
    reference: dict[str, np.ndarray] = field(default_factory=dict)
    policy: dict[str, np.ndarray] = field(default_factory=dict)
    pictures: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_run(run_dir: Path, wanted: Callable[[str], bool]) -> RunFiles:
    """Read the files of a run that exist.

    Args:
        run_dir: the run's folder.
        wanted: which columns of metrics.jsonl are read.

    Returns:
        What could be read; a file that exists but cannot be used becomes a line in `problems`.
    """
    files = RunFiles()

    def attempt(name: str, read: Callable[[Path], None]) -> None:
        if (run_dir / name).exists():
            try:
                read(run_dir / name)
            except Exception as error:  # an incomplete report is better than none
                line = one_line(error).replace(str(run_dir), ".")
                files.problems.append(f"{name} could not be used: {line}")

    attempt("config.yaml", lambda path: _read_config(path, files))
    attempt(METRICS_FILE, lambda path: files.metrics.update(read_columns(path, wanted)))
    attempt("evaluation.json", lambda path: files.evaluation.update(json.loads(path.read_text("utf-8"))))
    attempt("evaluation/images.parquet", lambda path: _read_rows(path, files))
    attempt("evaluation/thumbnails.npz", lambda path: _read_pictures(path, files))
    return files


def _read_config(path: Path, files: RunFiles) -> None:
    parsed = read_yaml(path)
    files.config_text = path.read_text(encoding="utf-8")
    files.config = parsed if isinstance(parsed, dict) else {}


def _read_rows(path: Path, files: RunFiles) -> None:
    import pyarrow.parquet

    # ParquetFile, not read_table: the latter imports pandas.
    with pyarrow.parquet.ParquetFile(path) as file:
        table = file.read().to_pydict()
    model = np.asarray(table.pop("model"), dtype=object)
    columns = {name: np.asarray(values, dtype=object) for name, values in table.items()}
    for name in {"reward", "nsfw_probability"} & table.keys():
        columns[name] = np.asarray([np.nan if v is None else v for v in table[name]], dtype=np.float64)
    sides = [
        {name: column[model == side] for name, column in columns.items()} for side in ("reference", "policy")
    ]
    keys = [list(zip(rows["caption_id"], rows["sample"], strict=True)) for rows in sides]
    if keys[0] != keys[1] or not keys[0]:
        raise ValueError("the two sides do not hold the same captions and samples in the same order")
    files.reference, files.policy = sides


def _read_pictures(path: Path, files: RunFiles) -> None:
    if not files.reference:
        raise ValueError("the rows that the pictures belong to are missing")
    with np.load(path, allow_pickle=False) as stored:
        rows, before, after = stored["rows"], stored["reference"], stored["policy"]
    if not len(rows) == len(before) == len(after) or rows.max(initial=0) >= len(files.reference["reward"]):
        raise ValueError(f"{len(rows)} rows, {len(before)} and {len(after)} pictures do not match")
    files.pictures = {int(row): (before[n], after[n]) for n, row in enumerate(rows)}

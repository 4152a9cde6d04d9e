"""What TensorBoard shows of a run: scalars, histograms, pictures, settings and the evaluation."""

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from dalle_ppo.runs.metric_table import DETAILS, EVALUATIONS, FAMILIES, GOALS, METRICS, PARTS

EVALUATED = sorted(
    (m for m in METRICS.values() if m.board_evaluation is not None), key=lambda m: m.board_evaluation
)
"""Metrics of an evaluation that are shown, over all captions and in this order."""

EVALUATION_FILE = ".evaluation"
"""How the names of files end that hold an evaluation."""


class Board:
    """Writes the TensorBoard events of a run.

    Args:
        run_dir: the run's folder.
        purge_step: events of this iteration and later ones are hidden.
    """

    def __init__(self, run_dir: Path, purge_step: int | None = None) -> None:
        self.writer = open_board(run_dir, purge_step)

    def write(self, record: Mapping[str, object]) -> None:
        """Writes the numbers of one iteration; missing ones are left out."""
        for name, value in record.items():
            if name != "iteration" and isinstance(value, int | float):
                self.writer.add_scalar(tensorboard_tag(name), value, record["iteration"])

    def write_histograms(self, iteration: int, values: Mapping[str, np.ndarray]) -> None:
        """Writes histograms of per-image values by name; NaN is left out."""
        for name, column in values.items():
            column = np.asarray(column, dtype=np.float64).ravel()
            column = column[np.isfinite(column)]
            if len(column):
                self.writer.add_histogram(f"histograms/{name}", column, iteration, bins="auto")

    def write_grid(self, iteration: int, name: str, grid: np.ndarray) -> None:
        """Writes one picture, uint8 [H, W, 3]."""
        self.writer.add_image(f"images/{name}", grid, iteration, dataformats="HWC")


def open_board(run_dir: Path, purge_step: int | None = None, suffix: str = ""):
    """A writer of TensorBoard events.

    Args:
        run_dir: the run's folder.
        purge_step: earlier files' events of this step and later ones are hidden.
        suffix: how the name of its file ends.
    """
    _order_files(Path(run_dir) / "tensorboard")
    # If tensorflow is installed, TensorBoard imports all of it (seconds, hundreds of MB) unless this module
    # exists; TensorBoard's own file writer works the same way without it.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    from torch.utils.tensorboard import SummaryWriter

    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _hook
    return SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=purge_step, filename_suffix=suffix)


def _hook(args: threading.ExceptHookArgs) -> None:
    """Prints no trace of a disk that fails under TensorBoard's thread: the next write raises the error."""
    if not (type(args.thread).__module__.startswith("tensorboard") and isinstance(args.exc_value, OSError)):
        threading.__excepthook__(args)


def _order_files(folder: Path) -> None:
    """Makes earlier files sort before new ones.

    TensorBoard reads files in the order of their names, which hold the time in seconds. If the clock has been
    set back, or in the second of a kill, it would read what a resumed run hides after what hides it.
    """
    files = sorted(folder.glob("events.out.tfevents.*"))
    times = [file.name.split(".")[3] for file in files]
    if all(text.isdecimal() and int(text) < int(time.time()) for text in times):
        return
    for number, file in enumerate(files):
        prefix, _, rest = file.name.removeprefix("events.out.tfevents.").partition(".")
        file.rename(folder / f"events.out.tfevents.{number:010d}.{rest or prefix}")


def write_settings(run_dir: Path, config_text: str, settings: Mapping[str, object], iteration: int) -> None:
    """Writes the resolved configuration to TensorBoard, as text and as hparams next to the main metrics.

    Args:
        run_dir: the run's folder; no other writer may be open.
        config_text: YAML.
        settings: by dotted name; values other than numbers, text and booleans are shown as JSON.
        iteration: the iteration at which the run starts or resumes.
    """
    board = open_board(run_dir)
    from torch.utils.tensorboard.summary import hparams

    indented = "\n".join("    " + line for line in config_text.splitlines())
    board.add_text("config", indented, iteration)
    shown = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in settings.items()
    }
    goals = [tensorboard_tag(metric.name) for metric in GOALS]
    evaluated = [evaluation_tag(metric.name) for metric in EVALUATED]
    # The last of the three marks the run as finished.
    for summary in hparams(shown, dict.fromkeys([*goals, *evaluated]))[:2]:
        board.file_writer.add_summary(summary)
    board.close()


def write_evaluation(run_dir: Path, points: Mapping[int, Mapping[str, object]]) -> None:
    """Writes the numbers of an evaluation to TensorBoard and marks the run as finished.

    They take the place of those of an earlier evaluation, which may have been interrupted.

    Args:
        run_dir: the run's folder; no other writer may be open.
        points: what `summarise` returns for all captions, by iteration; only `EVALUATED` is written.
    """
    for earlier in (Path(run_dir) / "tensorboard").glob(f"*{EVALUATION_FILE}"):
        earlier.unlink()
    board = open_board(run_dir, suffix=EVALUATION_FILE)
    from torch.utils.tensorboard.summary import hparams

    for iteration, numbers in points.items():
        for metric in EVALUATED:
            value = numbers.get(metric.name)
            if value is not None:
                board.add_scalar(evaluation_tag(metric.name), value, iteration)
    board.file_writer.add_summary(hparams({}, {})[2])
    board.close()


def evaluation_tag(name: str) -> str:
    """TensorBoard's name for a metric of the evaluation."""
    return f"{EVALUATIONS}/{METRICS[name].board_evaluation:02d}_{name}"


def tensorboard_tag(name: str) -> str:
    """TensorBoard's name for a metric: group, then name."""
    metric = METRICS.get(name)
    if metric is not None and metric.board is not None:
        group, place = metric.board
        # TensorBoard sorts alphabetically within a group; the number keeps our order.
        return f"{group}/{place}_{name}"
    part = name.startswith(tuple(FAMILIES))
    return f"{PARTS}/{name.replace('/', '_')}" if part else f"{DETAILS}/{name}"

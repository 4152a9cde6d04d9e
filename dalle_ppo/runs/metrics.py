"""What a training run writes down: metrics.jsonl (one object an iteration) and TensorBoard."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from dalle_ppo.base.atomic import atomic_write

METRICS: dict[str, str] = {
    "iteration": "Number of this iteration.",
    "images": "Images drawn so far.",
    "reward_mean": "Mean raw score (penalties + CLIP term), before any normalisation and without KL.",
    "reward_median": "Median raw score.",
    "reward_std": "Standard deviation of the raw score over this iteration's images.",
    "reward_negative_mean": "Mean of the negative raw scores; null where there are none.",
    "unsafe_rate": "Share of images with detector probability above the upper threshold (0.4).",
    "share_above_lower": "Share of images with detector probability above the lower threshold (0.1).",
    "nsfw_probability_mean": "Mean probability that the detector gives.",
    "clip_similarity": "Mean cosine of caption and image over images at or below the lower threshold (0.1).",
    "kl": "Exact KL(policy, reference) in nats per image on the policy's own samples.",
    "kl_k1": "The same KL estimated by log pi - log pi_ref of the drawn tokens, in nats per image.",
    "kl_k3": "The same estimated by r - 1 - log r, r = pi_ref / pi of the drawn tokens, in nats per image.",
    "kl_coef": "Weight of the KL penalty, in units of the advantages (in the loss) or normalised scores.",
    "kl_coef_raw": "Weight of the KL penalty in raw reward units: kl_coef times reward_scale and, in the "
    "loss with whitened advantages, times advantage_std; null in the loss with advantages group or "
    "per_prompt, which have a unit a caption.",
    "reward_scale": "Running standard deviation that the scores are divided by.",
    "entropy": "Entropy of the guided distribution that tokens are drawn from, in nats per image.",
    "policy_loss": "Mean policy loss over the iteration's updates, as `objective` says, before "
    "importance weights.",
    "value_loss": "Mean of half the (clipped) squared error of the critic, in normalised units.",
    "kl_loss": "Mean KL term of the loss, where the KL penalty is placed there.",
    "entropy_loss": "Mean entropy term of the loss.",
    "clip_fraction": "Share of tokens whose gradient a clip of the ratio, or the dual clip, switched off.",
    "ratio_first_minibatch_max_deviation": "Largest distance of a ratio from 1 in the first minibatch; "
    "0 up to rounding, which dropout anywhere would not leave.",
    "reference_changes": "Tensors of the reference whose bits are not those it began with; always 0.",
    "ratio_max": "Largest ratio of new to old token probability in the iteration.",
    "approx_kl": "Mean k3 estimate of KL(old policy, new policy) per token, over the iteration's updates.",
    "sampler_log_prob_gap": "Mean absolute difference of a token's log-prob by the cached sampler and by "
    "the training forward.",
    "explained_variance": "1 - Var(returns - values) / Var(returns); 1 is perfect, 0 a constant critic.",
    "value_mean": "Mean value the critic gives before the update.",
    "return_mean": "Mean return in normalised units.",
    "advantage_std": "Standard deviation of the advantages before whitening.",
    "learning_rate": "The actor's learning rate.",
    "critic_learning_rate": "The critic's learning rate.",
    "gradient_norm": "Mean norm of the actor's gradient before clipping.",
    "critic_gradient_norm": "Mean norm of the critic's gradient before clipping.",
    "skipped_updates": "Updates of this iteration left out because a loss or gradient was not finite.",
    "batches_left_out": "1 where the reward was not usable, so that this iteration learned nothing; else 0.",
    "captions_truncated": "Share of captions longer than the text encoder reads.",
    "seconds": "Seconds this iteration took.",
    "seconds_rollout": "Of these, sampling and decoding.",
    "seconds_reward": "Of these, CLIP and its heads.",
    "seconds_scoring": "Of these, old, reference and value passes.",
    "seconds_update": "Of these, optimisation.",
    "images_per_second": "Images of this iteration over its seconds.",
    "memory_gb": "Peak memory of the process (of the device, if there is one) so far, in 10^9 bytes.",
}
"""Every metric of metrics.jsonl: name -> one-line definition. docs/metrics.md lists exactly these."""

METRIC_FAMILIES: dict[str, str] = {
    "reward/": "Mean of one part of the reward that has no metric of its own, before weight and gate; NAME "
    "is the part's, such as `my_rewards:colourful`.",
    "unsafe_rate/": "`unsafe_rate` over the captions of one tag.",
    "reward_mean/": "`reward_mean` over the captions of one tag.",
    "clip_similarity/": "`clip_similarity` over the captions of one tag.",
    "captions/": "Captions since the run began: `share_TAG` of those drawn, `drawn`, and of files `read` and "
    "`skipped_REASON`.",
}
"""Prefixes of metrics that exist once a reward part or once a caption tag."""

EVALUATED = (
    "unsafe_rate",
    "judge_unsafe_rate",
    "heldout_unsafe_rate",
    "reward_mean",
    "clip_similarity",
    "heldout_clip_similarity",
    "judge_alignment",
    "judge_unrecognised_rate",
    "kl",
    "entropy",
    "diversity",
)
"""What TensorBoard shows of an evaluation, over all captions, in this order."""

TENSORBOARD_GROUPS: dict[str, tuple[str, ...]] = {
    "1_goal": ("unsafe_rate", "reward_mean", "clip_similarity", "kl", "entropy", "reward_median"),
    "2_health": (
        "ratio_first_minibatch_max_deviation",
        "reference_changes",
        "explained_variance",
        "clip_fraction",
        "approx_kl",
        "sampler_log_prob_gap",
        "skipped_updates",
        "batches_left_out",
    ),
    "5_cost": (
        "images",
        "seconds",
        "seconds_rollout",
        "seconds_reward",
        "seconds_scoring",
        "seconds_update",
        "images_per_second",
        "memory_gb",
    ),
}
"""TensorBoard sorts groups by name: the numbers put the story first; names not listed go to 4_details."""

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes a run's metrics.jsonl and TensorBoard events; use as a context manager or call `close`.

    Args:
        run_dir: the run's folder.
        resume_iteration: finished iterations to keep; later lines of metrics.jsonl are cut off and later
            TensorBoard events are hidden. 0 starts afresh.
        tensorboard: whether to write TensorBoard events; the package is imported only then.
    """

    def __init__(self, run_dir: Path, resume_iteration: int = 0, tensorboard: bool = True) -> None:
        self.path = Path(run_dir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = truncate_metrics(self.path, resume_iteration)
        self._board = None
        if tensorboard:
            self._board = open_board(run_dir, kept[-1]["iteration"] + 1 if kept else None)

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
        if self._board is None:
            return
        for name, value in record.items():
            if name != "iteration" and isinstance(value, int | float):
                self._board.add_scalar(tensorboard_tag(name), value, record["iteration"])

    def write_histograms(self, iteration: int, values: Mapping[str, np.ndarray]) -> None:
        """Histograms of per-image values, e.g. {"reward": [B], "nsfw_probability": [B]}; NaN is left out."""
        for name, column in values.items() if self._board is not None else ():
            column = np.asarray(column, dtype=np.float64).ravel()
            column = column[np.isfinite(column)]
            if len(column):
                self._board.add_histogram(f"histograms/{name}", column, iteration, bins="auto")

    def write_images(self, iteration: int, name: str, images: np.ndarray, columns: int | None = None) -> None:
        """One grid of images, uint8 [N, H, W, 3], row by row; `columns` defaults to a square grid."""
        if self._board is not None:
            grid = image_grid(images, columns)
            self._board.add_image(f"images/{name}", grid, iteration, dataformats="HWC")

    def flush(self) -> None:
        """Push buffered TensorBoard events to disk; metrics.jsonl is never buffered."""
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flush and release the files."""
        if self._board is not None:
            self._board.close()
            self._board = None


def open_board(run_dir: Path, purge_step: int | None = None):
    """A writer of TensorBoard events; events from `purge_step` on are hidden."""
    # Where tensorflow is installed, TensorBoard imports all of it (seconds, hundreds of MB) unless this
    # module exists; its own file writer does the same.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=purge_step)


def write_settings(run_dir: Path, config_text: str, settings: Mapping[str, object], iteration: int) -> None:
    """The resolved configuration in TensorBoard, as text and as hparams beside the numbers that matter.

    Args:
        run_dir: the run's folder; no other writer may be open.
        config_text: YAML.
        settings: by dotted name; what is no number, text or boolean is shown as JSON.
        iteration: at which the run starts or goes on.
    """
    board = open_board(run_dir)
    from torch.utils.tensorboard.summary import hparams

    indented = "\n".join("    " + line for line in config_text.splitlines())
    board.add_text("config", indented, iteration)
    shown = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in settings.items()
    }
    goals = [tensorboard_tag(name) for name in TENSORBOARD_GROUPS["1_goal"]]
    # The last of the three says that the run is over.
    for summary in hparams(shown, dict.fromkeys([*goals, *map(evaluation_tag, EVALUATED)]))[:2]:
        board.file_writer.add_summary(summary)
    board.close()


def write_evaluation(run_dir: Path, points: Mapping[int, Mapping[str, object]]) -> None:
    """Numbers of an evaluation in TensorBoard, and that the run is over.

    Args:
        run_dir: the run's folder; no other writer may be open.
        points: what `summarise` says of all captions, by iteration; names beyond `EVALUATED` are left out.
    """
    board = open_board(run_dir)
    from torch.utils.tensorboard.summary import hparams

    for iteration, numbers in points.items():
        for name in EVALUATED:
            if numbers.get(name) is not None:
                board.add_scalar(evaluation_tag(name), numbers[name], iteration)
    board.file_writer.add_summary(hparams({}, {})[2])
    board.close()


def evaluation_tag(name: str) -> str:
    """TensorBoard's name of a number of the evaluation."""
    return f"6_evaluation/{EVALUATED.index(name) + 1:02d}_{name}"


def tensorboard_tag(name: str) -> str:
    """TensorBoard's name of a metric: group, then name."""
    for group, names in TENSORBOARD_GROUPS.items():
        if name in names:
            # TensorBoard sorts alphabetically inside a group; the index keeps our order.
            return f"{group}/{names.index(name) + 1}_{name}"
    family = next((prefix for prefix in METRIC_FAMILIES if name.startswith(prefix)), None)
    return f"3_by_part/{name.replace('/', '_')}" if family else f"4_details/{name}"


def undefined_metrics(metrics: Mapping[str, object]) -> list[str]:
    """Names that neither METRICS nor METRIC_FAMILIES defines: a trainer should write none."""
    return [name for name in metrics if name not in METRICS and not name.startswith(tuple(METRIC_FAMILIES))]


def read_metrics(path: Path) -> list[dict]:
    """The iterations of a metrics.jsonl; a last line cut off by a kill is ignored, a missing file is empty.

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
    """The first `iterations` iterations of a metrics.jsonl.

    Raises:
        ValueError: the file holds fewer, so that a resumed run would leave a gap.
    """
    records = read_metrics(path)[:iterations]
    if len(records) < iterations:
        raise ValueError(
            f"{path}: holds {len(records)} iterations, but the checkpoint is at {iterations}; "
            "resume from an earlier checkpoint or start over with --overwrite"
        )
    return records


def truncate_metrics(path: Path, iterations: int) -> list[dict]:
    """Keep what `first_metrics` returns, all at once or not at all; returns it."""
    records = first_metrics(path, iterations)
    atomic_write(path, "".join(json.dumps(record) + "\n" for record in records))
    return records


def plain_value(value):
    """A JSON value: scalars of numpy and torch as Python numbers, NaN and infinity as None."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"a metric must be a scalar, not {type(value).__name__}")


def image_grid(
    images: Sequence[np.ndarray] | np.ndarray, columns: int | None = None, gap: int = 2
) -> np.ndarray:
    """Images, uint8 [N, H, W, 3], on a white grid, row by row: uint8 [height, width, 3]."""
    images = np.asarray(images)
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for n, image in enumerate(images):
        top, left = gap + n // columns * (height + gap), gap + n % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid

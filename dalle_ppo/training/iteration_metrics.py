"""The numbers that describe an iteration: docs/metrics.md defines them."""

import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch

from dalle_ppo.config.settings import Config
from dalle_ppo.rl.records import Experience


class Stopwatch:
    """Seconds spent in named phases of an iteration.

    Args:
        device: each phase waits for its work, so that none is counted in the next phase.
        after_phase: called with the seconds of all phases so far whenever one ends.
    """

    def __init__(self, device: torch.device, after_phase: Callable[[dict[str, float]], None]) -> None:
        self.device, self.after_phase = device, after_phase
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()

    @contextmanager
    def phase(self, name: str):
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[f"seconds_{name}"] = time.perf_counter() - started
        self.after_phase(self.seconds)

    def metrics(self, num_images: int) -> dict[str, float]:
        total = time.perf_counter() - self.started
        return {"seconds": total, **self.seconds, "images_per_second": num_images / total}


def score_metrics(experience: Experience, config: Config) -> dict:
    """Metrics of the raw scores, overall and by caption tag."""
    scores = experience.scores.cpu().numpy()
    metrics = {
        "reward_mean": scores.mean(),
        "reward_median": np.median(scores),
        "reward_std": scores.std(),
        "reward_negative_mean": scores[scores < 0].mean() if (scores < 0).any() else None,
    }
    parts = {name: part.cpu().numpy() for name, part in experience.reward_parts.items()}
    probability, similarity = parts.pop("nsfw_probability", None), parts.pop("clip_similarity", None)
    nsfw, safe = config.reward.settings_of("nsfw"), np.ones(len(scores), dtype=bool)
    columns = {"reward_mean": scores}
    if probability is not None and nsfw is not None:
        columns["unsafe_rate"] = probability > nsfw.unsafe_threshold
        safe = probability <= nsfw.unsure_threshold
        metrics |= {
            "unsafe_rate": columns["unsafe_rate"].mean(),
            "share_above_lower": 1 - safe.mean(),
            "nsfw_probability_mean": probability.mean(),
        }
    if similarity is not None:
        metrics["clip_similarity"] = similarity[safe].mean() if safe.any() else None
    tags = np.array(experience.tags)
    for tag in sorted(set(experience.tags)):
        metrics |= {f"{name}/{tag}": column[tags == tag].mean() for name, column in columns.items()}
        if similarity is not None:
            seen = safe & (tags == tag)
            metrics[f"clip_similarity/{tag}"] = similarity[seen].mean() if seen.any() else None
    return metrics | {f"reward/{name}": part.mean() for name, part in parts.items()}


def peak_memory_gb(device: torch.device) -> float | None:
    """Peak memory so far, in 10^9 bytes: of the device if it has its own, else of the process.

    None if the system does not report it (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:
        return None
    # In bytes on macOS, in KiB on Linux.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def progress_line(metrics: dict) -> str:
    """The numbers that matter, for the progress bar; a narrow terminal cuts off the last ones."""
    shown = {
        "reward": ("reward_mean", "{:+.2f}"),
        "unsafe": ("unsafe_rate", "{:.1%}"),
        "KL": ("kl", "{:.1f}"),
        "clip": ("clip_similarity", "{:.3f}"),
        "img/s": ("images_per_second", "{:.0f}"),
    }
    return " ".join(
        f"{label} {form.format(metrics[name])}"
        for label, (name, form) in shown.items()
        if metrics.get(name) is not None
    )

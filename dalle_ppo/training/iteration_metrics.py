"""The numbers that describe an iteration: docs/metrics.md defines them."""

import sys
import time
from contextlib import contextmanager

import numpy as np
import torch

from dalle_ppo.config.settings import Config
from dalle_ppo.rl.kl import kl_k1, kl_k3
from dalle_ppo.rl.records import RolloutBatch, ScoredBatch


class Stopwatch:
    """Seconds spent in named phases of an iteration.

    Args:
        device: whose work a phase waits for, so that none is counted in the next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()

    @contextmanager
    def phase(self, name: str):
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[f"seconds_{name}"] = time.perf_counter() - started

    def metrics(self, num_images: int) -> dict[str, float]:
        total = time.perf_counter() - self.started
        return {"seconds": total, **self.seconds, "images_per_second": num_images / total}


def score_metrics(batch: RolloutBatch, scored: ScoredBatch, config: Config) -> dict:
    """Metrics of the raw scores, overall and by caption tag."""
    scores = scored.scores.cpu().numpy()
    metrics = {
        "reward_mean": scores.mean(),
        "reward_median": np.median(scores),
        "reward_std": scores.std(),
        "reward_negative_mean": scores[scores < 0].mean() if (scores < 0).any() else None,
    }
    parts = {name: part.cpu().numpy() for name, part in scored.reward_parts.items()}
    probability, similarity = parts.pop("nsfw_probability", None), parts.pop("clip_similarity", None)
    if probability is not None:
        unsafe = probability > config.reward.unsafe_threshold
        safe = probability <= config.reward.unsure_threshold
        metrics |= {
            "unsafe_rate": unsafe.mean(),
            "share_above_lower": 1 - safe.mean(),
            "nsfw_probability_mean": probability.mean(),
            "clip_similarity": similarity[safe].mean() if safe.any() else None,
        }
    tags = np.array(batch.tags)
    for tag in sorted(set(batch.tags)):
        metrics[f"reward_mean/{tag}"] = scores[tags == tag].mean()
        if probability is not None:
            metrics[f"unsafe_rate/{tag}"] = unsafe[tags == tag].mean()
            seen = safe & (tags == tag)
            metrics[f"clip_similarity/{tag}"] = similarity[seen].mean() if seen.any() else None
    return metrics | {f"reward/{name}": part.mean() for name, part in parts.items()}


def policy_metrics(batch: RolloutBatch, scored: ScoredBatch) -> dict:
    """KL and entropy in nats per image, and how far the sampler's rounding is from the training forward's."""
    gap = (batch.sampler_log_probs - scored.old_log_probs).abs().mean()
    return {
        "kl": scored.kl.sum(dim=1).mean().item(),
        "kl_k1": kl_k1(scored.old_log_probs, scored.ref_log_probs).sum(dim=1).mean().item(),
        "kl_k3": kl_k3(scored.old_log_probs, scored.ref_log_probs).sum(dim=1).mean().item(),
        "entropy": scored.entropy.sum(dim=1).mean().item(),
        "sampler_log_prob_gap": gap.item(),
    }


def peak_memory_gb(device: torch.device) -> float | None:
    """Peak memory so far, in 10^9 bytes: of the device if it has its own, else of the process.

    None where the system does not tell (Windows).
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
    """The numbers that matter, for the progress bar."""
    shown = {
        "reward": ("reward_mean", "{:+.2f}"),
        "unsafe": ("unsafe_rate", "{:.1%}"),
        "clip": ("clip_similarity", "{:.3f}"),
        "KL": ("kl", "{:.1f}"),
        "img/s": ("images_per_second", "{:.0f}"),
    }
    return " ".join(
        f"{label} {form.format(metrics[name])}"
        for label, (name, form) in shown.items()
        if metrics.get(name) is not None
    )

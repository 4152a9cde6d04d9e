"""Settings of the rollout: how the images to learn from are drawn."""

from dataclasses import dataclass
from typing import Literal

from dalle_ppo.base.checks import at_least_one, positive


@dataclass(frozen=True)
class RolloutConfig:
    """How images are collected."""

    rollout_batch_size: int = 96
    """Images per iteration. Default 96, our own, for the built-in world. Raise it when the gradient is
    mostly noise: four times as many images halve the noise."""
    samples_per_caption: int = 1
    """Images per caption; `rollout_batch_size` must be a multiple of it. Default 1, our own: with a critic,
    another caption is worth more than another image of the same caption. Use 4 or more with
    `credit.advantage` rloo (arXiv 2402.14740) or group (arXiv 2402.03300)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights and caches that images are sampled with. Default float32, our own: images
    are then sampled with exactly the weights that are trained. Use bfloat16 on a GPU: it halves what is read
    for each token, but the images come from a slightly different policy (`sampler_log_prob_gap`), which
    `update.importance_cap` corrects for."""
    memory_gb: float | None = None
    """Memory that sampling and decoding may use on top of the weights, in 10^9 bytes; batches that need more
    are drawn in parts, in evaluations too. Default null, our own: no limit. Set it when drawing runs out of
    memory."""

    def __post_init__(self) -> None:
        at_least_one(self, "rollout", "rollout_batch_size", "samples_per_caption")
        positive(self, "rollout", "memory_gb")
        if self.rollout_batch_size % self.samples_per_caption:
            raise ValueError(
                f"rollout.rollout_batch_size is {self.rollout_batch_size}; it must be a multiple of "
                f"rollout.samples_per_caption = {self.samples_per_caption}"
            )

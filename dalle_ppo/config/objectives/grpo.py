"""Settings of GRPO (arXiv 2402.03300) and its variants: DAPO, Dr. GRPO and GSPO."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dalle_ppo.base.checks import positive
from dalle_ppo.config.objective_checks import needs_advantage

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config

# How far a ratio may fall below and rise above 1, by the kind of ratio.
CLIP_RANGES = {"token": (0.2, 0.28), "image": (0.01, 0.014)}


@dataclass(frozen=True)
class Settings:
    """GRPO: PPO's clipped ratio, with each score normalised by the scores of the caption's other images."""

    divide_by_std: bool = True
    """Divide a caption's centred scores by their standard deviation. Default true (arXiv 2402.03300). Use
    false for Dr. GRPO (arXiv 2503.20783): captions whose images differ little then no longer count as much as
    those whose images differ a lot."""
    leave_out_equal: bool = True
    """Leave out captions whose images all have the same score: they would only dilute the gradient. Default
    true (arXiv 2503.14476, which draws others in their place; here the update has fewer images). The metric
    `captions_without_spread` counts them. Use false to keep the KL penalty on them."""
    ratio: Literal["token", "image"] = "token"
    """What is clipped: the ratio of each "token", or that of the whole "image", the geometric mean over its
    tokens, as in GSPO (arXiv 2507.18071). Default token (arXiv 2402.03300). Use image when single tokens with
    large ratios upset training."""
    clip_range: float | None = None
    """How far a ratio may fall before it earns nothing more. Default null, which is 0.2 for tokens
    (arXiv 2402.03300) and 0.01 for images, our own: on the built-in world, log-ratios of images spread by
    0.002 to 0.008 within an iteration, a tenth as much as those of tokens. Lower it when `approx_kl`
    jumps."""
    clip_range_high: float | None = None
    """The same for rises. Default null, which is 0.28 for tokens (arXiv 2503.14476: it lets unlikely codes
    grow) and 0.014 for images, our own. Set it to the value of `clip_range` for GRPO as published."""

    def __post_init__(self) -> None:
        positive(self, "grpo", "clip_range", "clip_range_high")
        if self.clip_ranges[0] >= 1:
            raise ValueError(f"grpo.clip_range is {self.clip_range}; it must be below 1")

    @property
    def clip_ranges(self) -> tuple[float, float]:
        """How far a ratio may fall below and rise above 1."""
        low, high = CLIP_RANGES[self.ratio]
        return self.clip_range or low, self.clip_range_high or high


DEFAULTS: dict[str, object] = {
    "credit.advantage": "group",
    # Each caption's scores are already normalised.
    "credit.whiten_advantages": False,
    "rollout.samples_per_caption": 8,
}


def check(config: "Config") -> None:
    """Refuses another advantage."""
    needs_advantage(config, "group", "it compares the images of a caption")

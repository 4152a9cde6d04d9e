"""Settings of credit: how the score of an image becomes an advantage for each token."""

from dataclasses import dataclass
from typing import Literal

from dalle_ppo.base.checks import at_least_one, positive


@dataclass(frozen=True)
class CreditConfig:
    """How scores become advantages; used by every objective."""

    advantage: Literal["gae", "rloo", "group", "per_prompt", "none"] = "gae"
    """What an image is compared with. "gae" compares with a critic (arXiv 1506.02438). The others need no
    critic: "rloo" (arXiv 2402.14740) and "group", as in GRPO (arXiv 2402.03300), compare the images of one
    caption, and "per_prompt" (arXiv 2305.13301) compares with earlier images of the same caption. "none"
    is for objectives that weigh whole images themselves; it is their default. Default
    gae: on the built-in world it is safer and more faithful than rloo (benchmarks/RESULTS.md). Change it when
    a critic does not fit into memory."""
    gae_lambda: float = 1.0
    """Lambda of "gae" (arXiv 1506.02438); the other advantages do not use it. Default 1.0: over 64 or 256
    tokens, 0.95 hides the score from the first tokens until the critic is good. Lower it when
    `explained_variance` is near 1."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and standard deviation 1 over the whole batch. Default true, as in the code
    of arXiv 1909.08593. Use false for advantages in units of the score."""
    advantage_clip: float | None = 5.0
    """Limit on whitened advantages, in standard deviations; null is no limit. Default 5.0, as in
    https://github.com/kvablack/ddpo-pytorch: a single image 30 below the mean must not make up the whole
    gradient. Use null for an unbiased gradient."""
    normalise_scores: bool = True
    """Divide scores by their running standard deviation. Default true (arXiv 2006.05990; the mean is left to
    the baseline). Use false, together with `whiten_advantages` false, for a KL weight in raw scores."""
    prompt_buffer_size: int = 32
    """Scores that "per_prompt" keeps for each caption. Default 32, our own, twice that of
    https://github.com/kvablack/ddpo-pytorch. Lower it when the policy changes fast."""
    prompt_min_count: int = 16
    """A caption with fewer scores than this is compared with the whole batch. Default 16, as in
    https://github.com/kvablack/ddpo-pytorch. Lower it when captions seldom repeat."""

    def __post_init__(self) -> None:
        at_least_one(self, "credit", "prompt_min_count")
        positive(self, "credit", "advantage_clip")
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"credit.gae_lambda is {self.gae_lambda}; it must lie between 0 and 1")
        if self.advantage != "gae" and self.gae_lambda != 1:
            raise ValueError(
                f"credit.gae_lambda is {self.gae_lambda}, which only credit.advantage gae reads; set it to 1 "
                f"with credit.advantage {self.advantage}"
            )
        if self.prompt_min_count > self.prompt_buffer_size:
            raise ValueError(
                f"credit.prompt_min_count is {self.prompt_min_count}; it must be at most "
                f"credit.prompt_buffer_size = {self.prompt_buffer_size}, or no caption would ever have enough"
            )

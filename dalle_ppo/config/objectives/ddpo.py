"""Settings of DDPO with importance sampling, DDPO_IS in arXiv 2305.13301."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dalle_ppo.config.objective_checks import needs_advantage

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config


@dataclass(frozen=True)
class Settings:
    """DDPO_IS: PPO's clipped ratio, with each score normalised by earlier scores of its caption."""

    clip_range: float = 0.2
    """PPO's epsilon: a token's probability ratio is clipped to between 1 - this and 1 + this; a code earns
    nothing beyond that. Default 0.2, as in PPO (arXiv 1707.06347). The 1e-4 of DDPO does not carry over: its
    log-prob of a denoising step is the mean over 16 384 latent numbers
    (https://github.com/kvablack/ddpo-pytorch), so that 1e-4 allows the step's probability to change by a
    factor of exp(1.6) = 5. A token's value is not a mean. With 1e-4, half of the codes that change at all are
    clipped after one optimiser step, and the policy moves a third as far (docs/objectives.md). Lower it when
    `approx_kl` jumps."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_range < 1:
            raise ValueError(f"ddpo.clip_range is {self.clip_range}; it must lie between 0 and 1")


DEFAULTS: dict[str, object] = {
    "credit.advantage": "per_prompt",
    # Each caption's scores already have mean 0 and deviation 1.
    "credit.whiten_advantages": False,
    # Captions seldom come back, so an iteration's own images of a caption must be enough to compare with.
    "credit.prompt_min_count": 8,
    "rollout.samples_per_caption": 8,
}


def check(config: "Config") -> None:
    """Refuses another advantage."""
    needs_advantage(config, "per_prompt", "it compares an image with earlier images of its caption")

"""Settings of the reward term `preference`."""

import math
from dataclasses import dataclass
from typing import ClassVar

from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """What people, or a model that ranks, would prefer: a reward model's mean score minus its uncertainty."""

    parts: ClassVar = ("preference_mean", "preference_spread")
    reads_clip: ClassVar = True
    detectors: ClassVar = ("reward_model",)

    reward_model: str = ""
    """The file that `python -m dalle_ppo.reward_model` wrote; it must belong to the run's CLIP."""
    beta: float = 1.0
    """How many standard deviations of the ensemble's members are subtracted from their mean. Default 1, our
    own; 0 trusts the mean, higher values keep the policy where the members agree."""

    def __post_init__(self) -> None:
        if not self.reward_model:
            raise ValueError(
                "preference needs reward_model, the file that python -m dalle_ppo.reward_model wrote"
            )
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta is {self.beta}; it must be 0 or a positive number")

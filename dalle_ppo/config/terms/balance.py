"""Settings of the reward term `balance`."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from dalle_ppo.base.checks import positive
from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """Rewards images that bring the shares of attributes, told apart by CLIP, nearer to a target."""

    parts: ClassVar = ("balance",)
    reads_clip: ClassVar = True

    attributes: dict[str, str]
    """Two or more attributes, each with a text that CLIP compares images with, such as {woman: "a photo of a
    woman", man: "a photo of a man"}."""
    target: dict[str, float] | None = None
    """The share that each attribute should have; they sum to 1. null is equal shares."""
    over: Literal["batch", "caption"] = "batch"
    """What the shares are taken over: all images of a "batch", or the images of each "caption", which needs
    several of them."""
    temperature: float = 0.01
    """What cosines are divided by before the softmax over attributes. Default 0.01, at which CLIP was
    trained."""

    def __post_init__(self) -> None:
        positive(self, "", "temperature")
        names = list(self.attributes)
        if len(names) < 2:
            raise ValueError(f"attributes of balance has {len(names)} entries; name at least two")
        if "balance" in names:
            raise ValueError(
                "attributes of balance names one balance, the name of the term's own value; rename it"
            )
        if self.target is None:
            return
        if sorted(self.target) != sorted(names):
            raise ValueError(f"target of balance names {list(self.target)}; it must name {names}")
        shares = list(self.target.values())
        if min(shares) <= 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ValueError(f"target of balance is {self.target}; all shares must be above 0 and sum to 1")

    @property
    def compares_batch(self) -> bool:
        return self.over == "batch"

    def images_needed(self, compared: bool) -> int:
        return 2 if self.over == "caption" else 1

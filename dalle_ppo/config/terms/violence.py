"""Settings of the reward term `violence`."""

from dataclasses import dataclass
from typing import ClassVar

from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """Minus how much nearer an image is to LAION's direction of violence than to its opposite."""

    parts: ClassVar = ("violence_score",)
    reads_clip: ClassVar = True
    detectors: ClassVar = ("head",)

    head: str = "violence_detection_vit_l_14.npy"
    """LAION's file of two directions, for ViT-L/14 or ViT-B/32. It is not downloaded; docs/rewards.md says
    where it is."""

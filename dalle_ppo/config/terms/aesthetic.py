"""Settings of the reward term `aesthetic`."""

from dataclasses import dataclass
from typing import ClassVar

from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """How beautiful people find an image, about 1 to 10, by LAION's aesthetic predictor on ViT-L/14."""

    parts: ClassVar = ("aesthetic_score",)
    reads_clip: ClassVar = True
    detectors: ClassVar = ("head",)

    head: str = "sac+logos+ava1-l14-linearMSE.pth"
    """The predictor's file as it is published, or as `converters/add_probes.py` wrote it. It is not
    downloaded; docs/rewards.md says where it is."""

"""Settings of the reward term `clip_similarity`."""

from dataclasses import dataclass
from typing import ClassVar

from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """The cosine similarity of image and caption in CLIP's space; it has no settings of its own."""

    parts: ClassVar = ("clip_similarity",)
    reads_clip: ClassVar = True

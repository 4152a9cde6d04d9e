"""Settings of the reward term `diversity`."""

from dataclasses import dataclass
from typing import ClassVar

from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """How far an image is, in CLIP's space, from the other images of its caption; it has no settings of its
    own."""

    parts: ClassVar = ("diversity",)
    reads_clip: ClassVar = True

    def images_needed(self, compared: bool) -> int:
        """Two images of a caption are equally far from each other: comparing them teaches nothing."""
        return 3 if compared else 2

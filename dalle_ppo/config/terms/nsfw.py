"""Settings of the reward term `nsfw`."""

from dataclasses import dataclass
from typing import ClassVar

from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """A penalty for images that an NSFW detector calls unsafe or suspicious."""

    parts: ClassVar = ("nsfw_probability",)
    reads_clip: ClassVar = True
    detectors: ClassVar = ("detector",)

    detector: str = "builtin"
    """The detector: "builtin" for the built-in world's; "laion-l14" or "laion-b32" for LAION's, downloaded
    once; or a file that `converters/keras_nsfw_to_torch.py` or `python -m dalle_ppo.detector` wrote."""
    unsafe_threshold: float = 0.4
    """An image with an NSFW probability above this is unsafe."""
    unsure_threshold: float = 0.1
    """An image with a probability above this, up to `unsafe_threshold`, is suspicious."""
    unsafe_penalty: float = -30.0
    """Score of an unsafe image."""
    unsure_penalty: float = -10.0
    """Score of a suspicious image."""
    clean_threshold: float = 0.01
    """An image with a probability below this gets `clean_bonus`."""
    clean_bonus: float = 0.0
    """Score of an image that is certainly clean. All others up to `unsure_threshold` score 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.clean_threshold <= self.unsure_threshold <= self.unsafe_threshold <= 1:
            raise ValueError(
                "the thresholds must be ordered 0 <= clean_threshold <= unsure_threshold <= "
                f"unsafe_threshold <= 1, not {self.clean_threshold}, {self.unsure_threshold}, "
                f"{self.unsafe_threshold}"
            )

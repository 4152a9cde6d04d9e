"""Settings of the reward."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ExtraReward:
    """A reward of one's own, added to the total."""

    call: str
    """"my_module:my_function", called as `(images [B, 3, H, W] in [0, 1], captions) -> RewardResult` or a
    float tensor [B]."""
    weight: float = 1.0
    """Its factor."""


@dataclass(frozen=True)
class RewardConfig:
    """Thresholded NSFW score plus CLIP similarity; an unsafe image earns nothing for its caption."""

    detector: str = "builtin"
    """"builtin"; one of LAION's by name, "laion-l14" or "laion-b32", downloaded once; or a file that
    `converters/keras_nsfw_to_torch.py` wrote."""
    unsafe_threshold: float = 0.4
    """Above it an image is unsafe."""
    unsure_threshold: float = 0.1
    """Above it, up to `unsafe_threshold`, it is suspicious."""
    unsafe_penalty: float = -30.0
    """Score of an unsafe image; it earns nothing for matching its caption."""
    unsure_penalty: float = -10.0
    """Score of a suspicious image; it earns nothing for matching its caption either."""
    clean_threshold: float = 0.01
    """Below it an image gets `clean_bonus`."""
    clean_bonus: float = 0.0
    """Added for a certainly clean image."""
    clip_weight: float = 20.0
    """Factor of the cosine of image and caption, for images presumed safe."""
    extra: list[ExtraReward] = field(default_factory=list)
    """Rewards of one's own, as a list of {call, weight}."""
    bad_result: Literal["stop", "skip"] = "stop"
    """What happens when a reward raises, is not finite or has the wrong shape. "stop" ends the run with a
    checkpoint from before the batch; "skip" leaves the batch out, with a warning and a count in
    `batches_left_out`, and stops at the third in a row. Use skip for rewards that fail now and then."""

    def __post_init__(self) -> None:
        if not 0 <= self.clean_threshold <= self.unsure_threshold <= self.unsafe_threshold <= 1:
            raise ValueError(
                "reward thresholds must be ordered 0 <= clean_threshold <= unsure_threshold <= "
                f"unsafe_threshold <= 1, not {self.clean_threshold}, {self.unsure_threshold}, "
                f"{self.unsafe_threshold}"
            )

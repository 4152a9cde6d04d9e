"""Settings of the reward term `nudenet`."""

from dataclasses import dataclass, field
from typing import ClassVar

from dalle_ppo.config.term import TermSettings

KINDS = (
    *("FEMALE_GENITALIA_COVERED", "FACE_FEMALE", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED"),
    *("FEMALE_GENITALIA_EXPOSED", "MALE_BREAST_EXPOSED", "ANUS_EXPOSED", "FEET_EXPOSED", "BELLY_COVERED"),
    *("FEET_COVERED", "ARMPITS_COVERED", "ARMPITS_EXPOSED", "FACE_MALE", "BELLY_EXPOSED"),
    *("MALE_GENITALIA_EXPOSED", "ANUS_COVERED", "FEMALE_BREAST_COVERED", "BUTTOCKS_COVERED"),
)
"""What NudeNet 3.4.2 detects."""
LEAST_SCORE = 0.25
"""NudeNet itself drops detections that score no more than this."""
UNSAFE = (
    *("BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED", "ANUS_EXPOSED"),
    "MALE_GENITALIA_EXPOSED",
)


@dataclass(frozen=True)
class Settings(TermSettings):
    """Minus the score of the surest unsafe detection by NudeNet; needs the extra `detectors`."""

    parts: ClassVar = ("nudenet_score",)

    classes: dict[str, float] = field(default_factory=lambda: dict.fromkeys(UNSAFE, LEAST_SCORE))
    """Which of NudeNet's classes count, each with the score, 0.25 to 1, from which a detection counts.
    NudeNet drops detections below 0.25 itself."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("classes is empty; name at least one class, such as {BUTTOCKS_EXPOSED: 0.25}")
        for name, threshold in self.classes.items():
            if name not in KINDS:
                raise ValueError(f"classes names {name}, which NudeNet lacks; it has {', '.join(KINDS)}")
            if not LEAST_SCORE <= threshold <= 1:
                raise ValueError(
                    f"classes gives {name} the threshold {threshold}; it must lie between {LEAST_SCORE} and "
                    "1, as NudeNet itself drops detections below that"
                )

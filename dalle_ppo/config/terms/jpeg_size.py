"""Settings of the reward term `jpeg_size`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """The size of an image as a JPEG file, in kB of 1 000 bytes: two of DDPO's tasks (arXiv 2305.13301)."""

    parts: ClassVar = ("jpeg_kb",)

    task: Literal["incompressible", "compressible"] = "incompressible"
    """"incompressible" rewards large files: its value is the size. "compressible" rewards small ones: its
    value is minus the size."""
    quality: int = 95
    """JPEG quality, 1 to 95; DDPO's is 95."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(
                f"quality is {self.quality}; it must lie between 1 and 95, as Pillow advises: above, files "
                "grow without looking better"
            )

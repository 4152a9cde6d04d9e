"""Settings of the reward term `head`."""

from dataclasses import dataclass
from typing import ClassVar

from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """What any head on CLIP embeddings says about an image."""

    reads_clip: ClassVar = True
    detectors: ClassVar = ("head",)

    head: str = ""
    """The head: a file of ours (`.safetensors`), or one of LAION's `.pth` and `.npy` files (docs/detectors.md
    lists them), or a detector's name, as in the term `nsfw`. It must be given."""
    column: int | None = None
    """Which output counts, from 0. In a file of directions, such as LAION's for violence, it is the cosine
    with that direction; null is how much nearer the second one is than the first. Other heads have one
    output."""

    def __post_init__(self) -> None:
        if not self.head:
            raise ValueError("head of head is not set; give the head's file, as in {name: head, head: FILE}")
        if self.column is not None and self.column < 0:
            raise ValueError(f"column of head is {self.column}; it must be 0 or more, or null")

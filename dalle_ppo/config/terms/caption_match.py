"""Settings of the reward term `caption_match`."""

from dataclasses import dataclass
from typing import ClassVar

from dalle_ppo.base.checks import at_least_one
from dalle_ppo.config.service import VisionSettings


@dataclass(frozen=True)
class Settings(VisionSettings):
    """A model describes the image; the score is how much of the caption is found in its description."""

    parts: ClassVar = ("caption_match",)

    ask: str = "Answer concisely: what is going on in this image?"
    """What the model is asked about each image."""
    reference: str = "The image contains {caption}"
    """The text that the model's description is compared with; {caption} is the caption."""
    bert: str = "microsoft/deberta-xlarge-mnli"
    """The text model of BERTScore: a folder or a name on the hub."""
    bert_layer: int | None = None
    """The layer whose embeddings are compared; null is the one that BERTScore recommends, which it knows for
    published models only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "", "bert_layer")
        if "{caption}" not in self.reference:
            raise ValueError(f"reference of caption_match is {self.reference!r}; it must hold {{caption}}")

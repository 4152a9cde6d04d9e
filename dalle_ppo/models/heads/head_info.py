"""The metadata stored in a head's file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadInfo:
    """The metadata stored in a head's file.

    clip_model, clip_pretrained: open_clip's names for the CLIP whose embeddings it reads; "" if unknown.
    dimension: width of the embedding.
    output: "probability" (a detector), "score", or "preference" (a reward model).
    round_to_float16: the reward rounds embeddings to float16 before it calls the head (which rounds nothing).
    source, source_sha256: the file or folder it was converted from, and its hash; of a reward model, the
        hash of the answers that it learned from.
    licence: a note on the terms of the original.
    """

    clip_model: str
    clip_pretrained: str
    dimension: int
    output: str
    round_to_float16: bool = False
    source: str = ""
    source_sha256: str = ""
    licence: str = ""

    @property
    def width(self) -> int:
        """How many numbers the first layer reads: a reward model's are image, caption and their product."""
        return self.dimension * (3 if self.output == "preference" else 1)

"""What reward terms share: one CLIP, loaded when the first term asks for it, and run once per batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dalle_ppo.models.clip_scorer import ClipScorer


class Shared:
    """Hands out CLIP, its embeddings of the current batch, and detectors' files.

    Args:
        open_clip: loads CLIP; None if no term of the list declares that it reads it.
        detector_file: finds the file for a setting such as "builtin" or "laion-l14".
        device: where terms put what they load.
    """

    def __init__(
        self,
        open_clip: Callable[[], ClipScorer] | None = None,
        detector_file: Callable[[str], Path] = Path,
        device: torch.device | str = "cpu",
    ) -> None:
        self._open_clip, self.detector_file, self.device = open_clip, detector_file, torch.device(device)
        self._batch: tuple[Tensor, list[str]] | None = None
        self._embeddings: dict[str, Tensor] = {}

    @cached_property
    def clip(self) -> ClipScorer:
        """The run's CLIP.

        Raises:
            ValueError: no term declared that it reads CLIP.
        """
        if self._open_clip is None:
            raise ValueError("a reward term reads CLIP, but its settings lack reads_clip = True; add it")
        return self._open_clip()

    @contextmanager
    def batch(self, images: Tensor, captions: list[str]) -> Iterator[None]:
        """Sets the batch to embed: images [B, 3, H, W] and captions; nothing is kept afterwards."""
        self._batch, self._embeddings = (images, captions), {}
        try:
            yield
        finally:
            self._batch, self._embeddings = None, {}

    def image_embeddings(self) -> Tensor:
        """L2-normalised embeddings of the batch's images, float32 [B, D]; a copy that may be changed."""
        return self._once("images", lambda: self.clip.embed_images(self._batch[0]))

    def text_embeddings(self) -> Tensor:
        """L2-normalised embeddings of the batch's captions, float32 [B, D]; a copy that may be changed."""
        return self._once("texts", lambda: self.clip.embed_texts(self._batch[1]))

    def image_embeddings_if_computed(self) -> Tensor | None:
        """The embeddings of the batch's images if a term has asked for them; else None."""
        return self._embeddings.get("images")

    def _once(self, kind: str, embed: Callable[[], Tensor]) -> Tensor:
        if kind not in self._embeddings:
            self._embeddings[kind] = embed()
        return self._embeddings[kind].clone()

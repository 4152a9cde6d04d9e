"""A second CLIP and a second detector that no reward uses.

They do what the judge does in the built-in world: a policy that fools the CLIP and the detector of its reward
rarely fools others as well.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dalle_ppo.config.clip import ClipConfig
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.clip_config import rename_settings
from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.models.heads.binding import bind_clip
from dalle_ppo.models.heads.keras.download import detector_file
from dalle_ppo.models.heads.nsfw import EmbeddingHead, head_probability, load_detector

HELDOUT_COLUMNS = ("heldout_nsfw_probability", "heldout_clip_similarity")


@dataclass(frozen=True)
class HeldOut:
    """Measures images by `(images [B, 3, H, W] float in [0, 1], captions) -> {column: [B]}`.

    Args:
        clip: embeds images and captions.
        detector: NSFW head of that CLIP, or None.
    """

    clip: ClipScorer
    detector: EmbeddingHead | None

    @torch.no_grad()
    def __call__(self, images: Tensor, captions: list[str]) -> dict[str, np.ndarray]:
        embeddings = self.clip.embed_images(images)
        similarity = (embeddings * self.clip.embed_texts(captions)).sum(dim=1)
        columns = dict.fromkeys(HELDOUT_COLUMNS, np.full(len(images), np.nan))
        columns["heldout_clip_similarity"] = similarity.cpu().numpy()
        if self.detector is not None:
            columns["heldout_nsfw_probability"] = head_probability(self.detector, embeddings).cpu().numpy()
        return columns


def load_heldout(clip: ClipConfig | None, detector: str | None, device: torch.device) -> HeldOut | None:
    """The measures of `evaluation.heldout_clip` and `evaluation.heldout_detector`; None if no CLIP is set.

    Raises:
        ValueError: if one cannot be loaded, or the detector was made for another CLIP.
    """
    if clip is None:
        return None
    try:
        scorer = load_clip(clip.model, clip.pretrained, device, clip.quick_gelu, clip.same_as)
    except ValueError as error:
        text = rename_settings(str(error), lambda name: f"evaluation.heldout_clip.{name}")
        raise ValueError(f"evaluation.heldout_clip: {text}") from None
    if detector is None:
        return HeldOut(scorer, None)
    head = load_detector(detector_file(detector)).to(device)
    bind_clip(head, scorer)
    return HeldOut(scorer, head)

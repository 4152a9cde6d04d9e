"""How well image and caption match, by a CLIP; its settings are in `config/terms/clip_similarity.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.clip_config import rename_settings
from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.shared import Shared

TRANSFORMS = {"none": lambda x: x, "relu": torch.relu, "sigmoid": torch.sigmoid}


def load(options, shared: Shared) -> Reward:
    """Loads CLIP: the run's, or the term's own.

    Args:
        options: the term's settings.
        shared: hands out the run's CLIP and its embeddings.

    Raises:
        ValueError: CLIP cannot be loaded.
    """
    own = None if options.model is None else load_own_clip(options, shared.device)
    clip = own or shared.clip  # loaded now, so that errors show before training starts

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        if own is None:
            embeddings, texts = shared.image_embeddings(), shared.text_embeddings()
        else:
            embeddings, texts = own.embed_images(images), own.embed_texts(captions)
        similarity = (embeddings * texts).sum(dim=1)
        similarity = clip.logits(similarity) if options.logits else similarity
        similarity = TRANSFORMS[options.transform](similarity)
        # An evaluation measures diversity with its own embeddings only where no term reads the run's CLIP.
        measured = None if own is None else embeddings
        return RewardResult(similarity, {"clip_similarity": similarity}, measured)

    return reward


def load_own_clip(options, device: torch.device) -> ClipScorer:
    """The CLIP that the term's settings name.

    Raises:
        ValueError: it cannot be loaded; names the term's settings.
    """
    try:
        return load_clip(options.model, options.pretrained, device, options.quick_gelu)
    except ValueError as error:  # load_clip's messages name the settings of the run's CLIP
        text = rename_settings(str(error), lambda name: f"{name} of clip_similarity")
        raise ValueError(f"reward.terms: {text}") from error

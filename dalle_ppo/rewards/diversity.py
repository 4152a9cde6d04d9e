"""The mean CLIP distance of an image from the other images of its caption: a term against collapse."""

import torch
from torch import Tensor

from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.groups import caption_groups
from dalle_ppo.rewards.shared import Shared


def load(options, shared: Shared) -> Reward:
    """Loads CLIP.

    Args:
        options: the term's settings; it has none.
        shared: hands out CLIP and its embeddings.

    Raises:
        ValueError: CLIP cannot be loaded.
    """
    _ = shared.clip  # loaded now, so that errors show before training starts

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        distance = distance_within_captions(shared.image_embeddings(), captions)
        return RewardResult(distance, {"diversity": distance})

    return reward


def distance_within_captions(embeddings: Tensor, captions: list[str]) -> Tensor:
    """Mean cosine distance of each image from the other images of its caption; 0 without any.

    The mean over a caption is its mean distance over pairs. The policy gradient of that mean's expectation
    gives each image twice this value as its credit: an image is the first of some pairs, and the second of as
    many.

    Args:
        embeddings: L2-normalised, [B, D].
        captions: B of them.

    Returns:
        float32 [B] in 0..2.
    """
    distances = torch.zeros(len(embeddings), device=embeddings.device)
    for rows in caption_groups(captions):
        if len(rows) > 1:
            cosines = embeddings[rows] @ embeddings[rows].T
            others = cosines.sum(dim=1) - cosines.diagonal()
            distances[rows] = (1 - others / (len(rows) - 1)).float()
    return distances

"""Shares of attributes over a batch against a target; its settings are in `config/terms/balance.py`."""

import torch
from torch import Tensor

from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.groups import caption_groups
from dalle_ppo.rewards.shared import Shared

SMALLEST_SHARE = 1e-6


def load(options, shared: Shared) -> Reward:
    """Loads CLIP and embeds the attributes' texts.

    Args:
        options: the term's settings.
        shared: hands out CLIP and its embeddings.

    Raises:
        ValueError: CLIP cannot be loaded.
    """
    names, given = list(options.attributes), options.target
    texts = shared.clip.embed_texts(list(options.attributes.values()))
    target = [1 / len(names) if given is None else given[name] for name in names]

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        cosines = shared.image_embeddings() @ texts.T
        shares = (cosines / options.temperature).softmax(dim=1)
        groups = caption_groups(captions) if options.over == "caption" else [list(range(len(captions)))]
        value = balance(shares, torch.tensor(target, device=shares.device), groups)
        named = {name: shares[:, i] for i, name in enumerate(names)}
        return RewardResult(value, {"balance": value, **named})

    return reward


def balance(probabilities: Tensor, target: Tensor, groups: list[list[int]]) -> Tensor:
    """Credit of each image for minus the KL divergence of its group's shares from the target.

    With q the mean of the images' probabilities p_i and t the target, an image's value is

        value_i = - sum over attributes a of  p_i(a) * log(q(a) / t(a))

    The mean over the group is exactly -KL(q, t). Differences between images are the exact credit: the policy
    gradient of -KL(q, t) is E[value * grad log pi] up to a constant, which a baseline removes, since
    d(-KL)/dq(a) = -log(q(a) / t(a)) - 1. As q comes from the same images, it is off by O(1 / images).

    Args:
        probabilities: p, [B, A]; rows sum to 1.
        target: t, [A], all above 0.
        groups: rows that share one q.

    Returns:
        float32 [B]; above 0 for images of rare attributes, below 0 for those of common ones.
    """
    value = torch.empty(len(probabilities), device=probabilities.device)
    for rows in groups:
        share = probabilities[rows].mean(dim=0).clamp_min(SMALLEST_SHARE)
        value[rows] = -(probabilities[rows] * (share / target).log()).sum(dim=1).float()
    return value

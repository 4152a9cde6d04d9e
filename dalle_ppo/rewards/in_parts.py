"""Scores a batch in parts if it does not fit into memory as a whole."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dalle_ppo.base.halving import Halving
from dalle_ppo.rewards.base import Metadata, Reward, RewardResult
from dalle_ppo.rewards.groups import caption_groups

WORK = "computing the reward of"


def score_in_parts(
    reward: Reward,
    images: Tensor,
    captions: Sequence[str],
    metadata: Metadata,
    halving: Halving,
    setting: str = "rollout.rollout_batch_size",
) -> RewardResult:
    """Calls the reward, on half as many images at a time whenever memory runs out.

    The images of a caption stay together, as some terms compare them; they are separated only where they do
    not fit and no term says that it needs several. A term that compares images of different captions gives
    other values in parts.

    Args:
        reward: the run's.
        images: float in 0..1, [B, 3, H, W].
        captions: B of them.
        metadata: metadata of each image's caption.
        halving: remembers what fits.
        setting: that says how many images are scored at once.

    Raises:
        ValueError: the reward raised it, or not even one image fits; of terms that compare the images of a
            caption, not even those.
    """
    groups = caption_groups(captions)
    compares = any(term.images_per_caption > 1 for term in getattr(reward, "terms", ()))
    halving.units[WORK] = max(map(len, groups), default=1) if compares else 1

    def work(size: int) -> RewardResult:
        if size >= len(captions):
            return reward(images, list(captions), metadata)
        order, results = [], []
        for rows in packed(groups if compares else cut(groups, size), size):
            known = [metadata[row] for row in rows]
            results.append(reward(images[rows], [captions[row] for row in rows], known))
            order += rows
        return joined(results, torch.tensor(order, device=images.device).argsort())

    return halving.run(WORK, setting, len(captions), work)


def cut(groups: Sequence[list[int]], size: int) -> list[list[int]]:
    """The groups, those above this size in several."""
    return [rows[start : start + size] for rows in groups for start in range(0, len(rows), size)]


def packed(groups: Sequence[list[int]], size: int) -> list[list[int]]:
    """Rows of whole groups, at most `size` together unless a single group is larger."""
    parts: list[list[int]] = []
    for rows in groups:
        if parts and len(parts[-1]) + len(rows) <= size:
            parts[-1] = parts[-1] + rows
        else:
            parts.append(rows)
    return parts


def joined(results: Sequence[RewardResult], order: Tensor) -> RewardResult:
    """The results of all parts as one, with its rows in this order; only what every part reports."""

    def column(name: str) -> dict[str, Tensor]:
        mappings = [getattr(result, name) for result in results]
        keys = [key for key in mappings[0] if all(key in mapping for mapping in mappings)]
        return {key: torch.cat([mapping[key] for mapping in mappings])[order] for key in keys}

    total = torch.cat([result.total for result in results])[order]
    embeddings = None
    if all(result.embeddings is not None for result in results):
        embeddings = torch.cat([result.embeddings for result in results])[order]
    return RewardResult(total, column("parts"), embeddings, column("values"))

"""Rewards that see all images of a caption at once: the groups of a batch, and decorators for functions.

The images of a caption are those with the same caption text in one batch. A caption with fewer images than a
function needs gets 0 for them: that is so for the pictures in `samples/`, one per caption.
"""

from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from torch import Tensor

from dalle_ppo.rewards.base import RewardFailure


def caption_groups(captions: Sequence[str]) -> list[list[int]]:
    """Rows of the images of each caption, in the order in which captions first occur."""
    rows: dict[str, list[int]] = {}
    for row, caption in enumerate(captions):
        rows.setdefault(caption, []).append(row)
    return list(rows.values())


def per_caption(at_least: int = 2) -> Callable:
    """Turns a function of one caption's images into a reward; use it as a decorator.

    The function takes `(images [n, 3, H, W], caption)` and returns one number for each of the n images.

    Args:
        at_least: how many images of a caption it needs; runs that draw fewer are refused.
    """

    def decorate(function: Callable) -> Callable:
        def reward(images: Tensor, captions: list[str]) -> Tensor:
            scores = torch.zeros(len(images))
            for rows in caption_groups(captions):
                if len(rows) >= at_least:
                    returned = function(images[rows], captions[rows[0]])
                    scores[rows] = _numbers(returned, len(rows), captions[rows[0]])
            return scores

        reward.__doc__, reward.images_per_caption = function.__doc__, at_least
        return reward

    return decorate


def pairwise(function: Callable) -> Callable:
    """Turns a comparison of two images into a reward, an image's share of wins; use it as a decorator.

    The function takes `(first [P, 3, H, W], second [P, 3, H, W], caption)`, all pairs of a caption's images
    in both orders, and returns for each pair how probable it is that the first is better, in 0..1. An image's
    score is the mean over its pairs, so a preference for the first place cancels.
    """

    @per_caption(at_least=2)
    def reward(images: Tensor, caption: str) -> Tensor:
        pairs = list(permutations(range(len(images)), 2))
        first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))
        returned = function(images[first], images[second], caption)
        wins = _numbers(returned, len(pairs), caption)
        won = torch.zeros(len(images)).index_add(0, first, wins)
        won = won.index_add(0, second, 1 - wins)
        return won / (2 * (len(images) - 1))

    reward.__doc__ = function.__doc__
    return reward


def _numbers(returned, expected: int, caption: str) -> Tensor:
    """What a function returned as float32 [expected] on the CPU."""
    try:
        numbers = torch.as_tensor(returned).to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0)
    if numbers.shape != (expected,):
        raise RewardFailure(
            f"returned {type(returned).__name__} for the caption {caption!r}; it must return {expected} "
            "numbers"
        )
    return numbers

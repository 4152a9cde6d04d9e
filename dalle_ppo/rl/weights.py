"""Weights of whole images, made of their scores, and the loss of preferred pairs.

Weights are constants to the losses, so they are computed without gradient.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dalle_ppo.rl.shapes import check_same_shape


@torch.no_grad()
def softmax_weights(scores: Tensor, temperature: float) -> Tensor:
    """Reward-weighted regression: `softmax(scores / temperature)`, scaled to mean 1.

    Args:
        scores: [B] of the images that share the softmax.
        temperature: > 0, in the units of the scores; small ones leave only the best image.

    Returns:
        [B] weights, never negative, with mean 1.

    Source: Peters & Schaal 2007 (reward-weighted regression); `make_weights` in
        ddpo/utils/hdf5.py of https://github.com/jannerm/ddpo.
    """
    return len(scores) * torch.softmax(scores / temperature, dim=0)


@torch.no_grad()
def sparse_weights(scores: Tensor, percentile: float) -> Tensor:
    """1 for every score at or above the percentile, 0 for the others.

    Args:
        scores: [B] of the images that are compared.
        percentile: in [0, 100), of these scores, with linear interpolation; 90 keeps the best tenth.

    Returns:
        [B] weights.

    Source: RWR_sparse in https://arxiv.org/abs/2305.13301.
    """
    # A score reaches the interpolated percentile if and only if it reaches the next score upwards, so nothing
    # is interpolated: rounding would drop the image that lies exactly at the percentile.
    position = math.ceil(percentile * (len(scores) - 1) / 100 - 1e-9)
    return (scores >= scores.sort().values[position]).to(scores.dtype)


@torch.no_grad()
def best_and_worst(scores: Tensor, group_index: Tensor) -> Tensor:
    """1 for the best image of each group, -1 for the worst, 0 for the others.

    Args:
        scores: [B] score of each image.
        group_index: [B] int64, equal for the images of one caption.

    Returns:
        [B] sides; the first one counts where images are equally good. A group without a difference gets 0.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(scores=scores, group_index=group_index)
    groups, position = group_index.unique(return_inverse=True)
    rows = torch.arange(len(scores), device=scores.device)
    sides, extremes = torch.zeros_like(scores), []
    for side, which in ((1.0, "amax"), (-1.0, "amin")):
        extreme = scores.new_zeros(len(groups)).scatter_reduce(0, position, scores, which, include_self=False)
        candidates = torch.where(scores == extreme[position], rows, len(rows))
        first = rows.new_full((len(groups),), len(rows)).scatter_reduce(0, position, candidates, "amin")
        sides[first] = side
        extremes.append(extreme)
    return torch.where((extremes[0] > extremes[1])[position], sides, 0.0)


def preference_loss(log_ratios: Tensor, sides: Tensor, group_index: Tensor, beta: float) -> Tensor:
    """DPO's loss of each group's pair: `-log sigmoid(beta * (log-ratio of the best - that of the worst))`.

    Args:
        log_ratios: [b] log pi - log ref of each image, summed over its tokens, with gradient.
        sides: [b] from `best_and_worst`.
        group_index: [b] int64, equal for the images of one caption.
        beta: > 0; how far a preference may move the policy from the reference.

    Returns:
        [b] the loss of its group's pair at every image of the group, 0 in groups without a pair. The mean of
        groups of the same size is therefore one over groups.

    Raises:
        ValueError: the shapes differ, or only one side of a pair is here.

    Source: https://arxiv.org/abs/2305.18290 eq. 7 (DPO); pairs drawn from the policy that learns:
        https://arxiv.org/abs/2402.04792.
    """
    check_same_shape(log_ratios=log_ratios, sides=sides, group_index=group_index)
    groups, position = group_index.unique(return_inverse=True)
    zeros, sides = log_ratios.new_zeros(len(groups)), sides.to(log_ratios.dtype)
    if zeros.index_add(0, position, sides).any():
        raise ValueError("preference_loss: a pair is split; the images of a caption must be together")
    has_pair = zeros.index_add(0, position, sides.abs()) > 0
    margins = zeros.index_add(0, position, sides * log_ratios)
    losses = torch.where(has_pair, -logsigmoid(beta * margins), zeros)
    return losses[position]


@torch.no_grad()
def effective_count(weights: Tensor) -> float:
    """How many images the weights amount to: `(sum w)^2 / sum w^2`, Kish's effective sample size.

    Args:
        weights: [B], not negative.

    Returns:
        Between 1 (one image has all the weight) and B (all have the same); 0 if all weights are 0.
    """
    squares = weights.square().sum()
    return (weights.sum().square() / squares).item() if squares > 0 else 0.0

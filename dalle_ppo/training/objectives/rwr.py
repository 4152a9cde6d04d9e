"""Reward-weighted regression: the likelihood of a round's images, weighted by their scores.

A round is an iteration: images drawn from the policy, then `update.epochs` passes over them; the next round
continues from what was learned. Weights have mean 1 over the round (or caption); those of a percentile are 1,
and the update then learns from the images that are kept alone. With enough steps the policy becomes the old
one times the weights.

Source: Peters & Schaal 2007; RWR and RWR_sparse in https://arxiv.org/abs/2305.13301 and
    https://github.com/jannerm/ddpo.
"""

import torch
from torch import Tensor

from dalle_ppo.config.objectives.rwr import Settings
from dalle_ppo.config.settings import Config
from dalle_ppo.rl.records import Experience
from dalle_ppo.rl.weights import effective_count, softmax_weights, sparse_weights
from dalle_ppo.training.credit import CreditState
from dalle_ppo.training.objective import Objective
from dalle_ppo.training.weighing import Numbers, weighed, weighed_likelihood, with_weight


def weights_of(scores: Tensor, settings: Settings) -> Tensor:
    """Weights [B] of images that are compared; `scores` [B] are normalised."""
    if settings.sparse_percentile is not None:
        return sparse_weights(scores, settings.sparse_percentile)
    return softmax_weights(scores, settings.temperature)


def weigh(scores: Tensor, caption_index: Tensor, config: Config) -> tuple[Tensor, Numbers]:
    """Weights [B] over the round, or within each caption; how many images they amount to."""
    settings = config.objective_settings
    if settings.per_prompt:
        weights = torch.empty_like(scores)
        for caption in caption_index.unique():
            members = caption_index == caption
            weights[members] = weights_of(scores[members], settings)
    else:
        weights = weights_of(scores, settings)
    return weights, {"effective_images": effective_count(weights)}


def credit(experience: Experience, config: Config, state: CreditState) -> tuple[Experience, CreditState]:
    """Weights in place of advantages."""
    return weighed(weigh, experience, config, state)


def kept(experience: Experience, config: Config) -> Experience:
    """The images that a percentile has left; otherwise all, whatever their weight."""
    sparse = config.objective_settings.sparse_percentile is not None
    return with_weight(experience, config) if sparse else experience


OBJECTIVE = Objective(weighed_likelihood, credit, select=kept)

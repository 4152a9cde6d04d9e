"""Puts the terms of a reward on one scale before they are added: `reward.normalise: per_term`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dalle_ppo.config.term import TermConfig
from dalle_ppo.rl.advantages import RunningMoments


def normalised_sum(
    values: Mapping[str, Tensor],
    terms: list[TermConfig],
    moments: Mapping[str, RunningMoments],
) -> tuple[Tensor, dict[str, RunningMoments], dict[str, float | None]]:
    """The sum over the terms of weight * value / s, where a term's gate is open.

    s is the running standard deviation of the term's values where its gate is open, this batch included, as
    `credit` divides the sum (arXiv 2006.05990). No mean is subtracted: where a gate is closed a term adds 0,
    and that must not become its average.

    Args:
        values: each term's value by its label, [B]; NaN where its gate is closed.
        terms: the settings' terms.
        moments: the terms' moments so far, by label; a term that is missing starts anew.

    Returns:
        The sum, float32 [B]; the moments with this batch; for metrics, each term's scale and mean share.
    """
    total, updated, metrics = torch.zeros_like(next(iter(values.values()))), {}, {}
    for term in terms:
        value = values[term.label]
        updated[term.label] = moments.get(term.label, RunningMoments()).update(value[~value.isnan()])
        scale = updated[term.label].std
        share = (term.common.weight / scale * value).nan_to_num(nan=0.0)
        metrics[f"term_scale/{term.label}"] = scale
        metrics[f"term_share/{term.label}"] = share.mean().item()
        total = total + share
    return total, updated, metrics

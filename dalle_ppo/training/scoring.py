"""Scores a batch with every network, before anything is learned from it."""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from dalle_ppo.base.halving import Halving
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.rl.kl import kl_k1, kl_k3
from dalle_ppo.rl.records import Experience


@dataclass(frozen=True)
class Networks:
    """The networks of a run.

    Args:
        family: how they draw and score; holds the parts that are never trained.
        actor: the policy that is trained.
        reference: its frozen original.
        critic: a separate network; None if the advantage needs none.
    """

    family: PolicyFamily
    actor: nn.Module
    reference: nn.Module
    critic: nn.Module | None = None


def score_passes(
    networks: Networks,
    experience: Experience,
    microbatch_size: int,
    keep_reference: bool = False,
    halving: Halving | None = None,
) -> Experience:
    """Computes old and reference log-probs of the drawn tokens, exact KL, entropy and values, [B, T] each.

    The tokens are scored as they were drawn; nothing is sampled again.

    Args:
        networks: the actor that drew the images, its reference, and the critic if there is one.
        experience: drawn.
        microbatch_size: images per forward pass.
        keep_reference: also keep the reference's states, for an exact KL in the loss.
        halving: remembers how many images fit into memory.

    Returns:
        The experience with these columns.
    """
    work = partial(_score, networks, experience, keep_reference)
    return (halving or Halving()).run("scoring", "update.microbatch_size", microbatch_size, work)


@torch.no_grad()
def _score(networks: Networks, experience: Experience, keep_reference: bool, size: int) -> Experience:
    family, columns, kept = networks.family, defaultdict(list), []
    for index in torch.arange(len(experience), device=experience.tokens.device).split(size):
        rows = experience.select(index)
        states = family.remember(networks.reference, rows)
        rows = replace(rows, reference_states=states)
        scores = family.score(networks.actor, rows, entropy=True, reference=networks.reference)
        if keep_reference and states is not None:
            kept.append(states)
        columns["old_log_probs"].append(scores.log_probs)
        columns["ref_log_probs"].append(scores.ref_log_probs)
        columns["kl"].append(scores.kl)
        columns["entropy"].append(scores.entropy)
        if networks.critic is not None:
            columns["values"].append(family.values(networks.critic, rows))
    reference_states = type(kept[0]).cat(kept) if kept else None
    whole = {name: torch.cat(parts) for name, parts in columns.items()}
    return replace(experience, reference_states=reference_states, **whole)


def policy_metrics(experience: Experience, from_reference: bool = False) -> dict[str, float]:
    """KL and entropy in nats per image, and the gap between sampler and training log-probs.

    Args:
        experience: with the columns of `score_passes`.
        from_reference: whether the reference drew the images.
    """
    drawn_with = experience.ref_log_probs if from_reference else experience.old_log_probs
    gap = (experience.sampler_log_probs - drawn_with).abs().mean()
    log_probs, ref_log_probs = experience.old_log_probs, experience.ref_log_probs
    return {
        "kl": experience.kl.sum(dim=1).mean().item(),
        "kl_k1": kl_k1(log_probs, ref_log_probs).sum(dim=1).mean().item(),
        "kl_k3": kl_k3(log_probs, ref_log_probs).sum(dim=1).mean().item(),
        "entropy": experience.entropy.sum(dim=1).mean().item(),
        "sampler_log_prob_gap": gap.item(),
    }

"""Scores a batch with every network, before anything is learned from it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from dalle_ppo.base.halving import Halving
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.rl.kl import kl_k1, kl_k3
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.anchor import Anchor

SCORING = "scoring"
"""A kind of work, as messages name it."""
SAMPLES = 32
"""Images that are drawn and scored at each checkpoint, at most; an evaluation of fewer captions has fewer."""


@dataclass(frozen=True)
class Networks:
    """The networks of a run.

    Args:
        family: how they draw and score; holds the parts that are never trained.
        actor: the policy that is trained.
        reference: its frozen original.
        critic: a separate network; None if the advantage needs none.
        anchor: images of the reference on which the actor is held to it; None without an anchor.
        reference_sha256: hash of the reference as it was loaded, if it is stored in fewer bits since.
    """

    family: PolicyFamily
    actor: nn.Module
    reference: nn.Module
    critic: nn.Module | None = None
    anchor: Anchor | None = None
    reference_sha256: str | None = None


def score_passes(
    networks: Networks,
    experience: Experience,
    microbatch_size: int,
    keep_reference: bool = False,
    order: Sequence[Tensor] | None = None,
    halving: Halving | None = None,
) -> Experience:
    """Computes old and reference log-probs of the drawn tokens, exact KL, entropy and values, [B, T] each.

    The tokens are scored as they were drawn; nothing is sampled again. With top-k, scores are those of the
    distribution on the stored codes, and `kl_full` and `mass_outside` say what that leaves out.

    Args:
        networks: the actor that drew the images, its reference, and the critic if there is one.
        experience: drawn.
        microbatch_size: images per forward pass.
        keep_reference: also keep the reference's states, for an exact KL in the loss.
        order: rows of each microbatch, int64, every row once; by default in order, `microbatch_size` each.
        halving: remembers how many images fit into memory.

    Returns:
        The experience with these columns.
    """
    work = partial(_score, networks, experience, keep_reference, order)
    return (halving or Halving()).run(SCORING, "update.microbatch_size", microbatch_size, work)


def chosen_rows(experience: Experience, size: int, order: Sequence[Tensor] | None) -> list[Tensor]:
    """Rows of each microbatch, at most `size` of them."""
    in_order = [torch.arange(len(experience), device=experience.tokens.device)]
    return [part for rows in order or in_order for part in rows.split(size)]


@torch.no_grad()
def _score(
    networks: Networks,
    experience: Experience,
    keep_reference: bool,
    order: Sequence[Tensor] | None,
    size: int,
) -> Experience:
    family, columns, kept = networks.family, defaultdict(list), []
    for index in chosen_rows(experience, size, order):
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
        if scores.mass_outside is not None:
            columns["kl_full"].append(scores.kl_full)
            columns["mass_outside"].append(scores.mass_outside)
        if networks.critic is not None:
            columns["values"].append(family.values(networks.critic, rows))
    reference_states = type(kept[0]).cat(kept) if kept else None
    whole = {name: torch.cat(parts) for name, parts in columns.items()}
    if order:
        back = torch.cat(list(order)).argsort()
        reference_states = reference_states and reference_states.select(back)
        whole = {name: column[back] for name, column in whole.items()}
    return replace(experience, reference_states=reference_states, **whole)


def policy_metrics(experience: Experience, from_reference: bool = False) -> dict[str, float | None]:
    """KL and entropy in nats per image, and the gap between sampler and training log-probs.

    With top-k also what the stored codes leave out; without it, these are None.

    Args:
        experience: with the columns of `score_passes`.
        from_reference: whether the reference drew the images.
    """
    full, outside = experience.kl_full, experience.mass_outside
    drawn_with = experience.ref_log_probs if from_reference else experience.old_log_probs
    gap = (experience.sampler_log_probs - drawn_with).abs().mean()
    log_probs, ref_log_probs = experience.old_log_probs, experience.ref_log_probs
    return {
        "kl": experience.kl.sum(dim=1).mean().item(),
        "kl_k1": kl_k1(log_probs, ref_log_probs).sum(dim=1).mean().item(),
        "kl_k3": kl_k3(log_probs, ref_log_probs).sum(dim=1).mean().item(),
        "entropy": experience.entropy.sum(dim=1).mean().item(),
        "sampler_log_prob_gap": gap.item(),
        "kl_full": None if full is None else full.sum(dim=1).mean().item(),
        "mass_outside": None if outside is None else outside.mean().item(),
    }

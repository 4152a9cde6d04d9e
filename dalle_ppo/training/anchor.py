"""The anchor: images of the reference, drawn once, on which the policy is held to it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from dalle_ppo.base.team import ALONE, Team
from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.config.settings import Config
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.policy.rollout import NoiseSource, collect
from dalle_ppo.rl.records import Experience


@dataclass(frozen=True)
class Anchor:
    """Images of the reference and how strongly they hold the policy.

    Args:
        images: drawn by the reference, with its states.
        coef: weight of one nat of KL.
        minibatch_size: images per optimiser step.
    """

    images: Experience
    coef: float
    minibatch_size: int


@torch.no_grad()
def draw_anchor(
    family: PolicyFamily, reference: nn.Module, captions: Sequence[CaptionRecord], config: Config
) -> Anchor:
    """Draws the anchor's images, one per caption; the same ones for the same seed, so none are saved."""
    noise, memory_gb = NoiseSource(config.seed, "anchor"), config.rollout.memory_gb
    drawn = collect(family, family.sampler_weights(reference), list(captions), 1, noise, memory_gb)
    drawn = replace(drawn, images=None)
    size, kept = config.update.microbatch_size, []
    for rows in torch.arange(len(drawn), device=drawn.tokens.device).split(size):
        kept.append(family.remember(reference, drawn.select(rows)))
    states = type(kept[0]).cat(kept) if kept[0] is not None else None
    return Anchor(replace(drawn, reference_states=states), config.anchor.coef, config.anchor.minibatch_size)


def anchor_backward(
    anchor: Anchor,
    family: PolicyFamily,
    policies: tuple[nn.Module, nn.Module],
    microbatch_size: int,
    generator: torch.Generator,
    team: Team = ALONE,
) -> float:
    """Adds the gradient of coef times the mean KL(policy, reference) over some of the anchor's tokens.

    The states come from the reference, and the sum over codes is exact, so the gradient has no noise but that
    of the choice of images.

    Args:
        anchor: the images.
        family: scores them.
        policies: the policy that is trained, and the reference.
        microbatch_size: images per forward pass.
        generator: draws which images.
        team: processes that share the images; their gradients are summed later.

    Returns:
        The mean KL of these images, nats per image.

    Source: https://arxiv.org/abs/2203.02155 eq. 2 (PPO-ptx).
    Differs: the KL of whole distributions in place of the log-likelihood of drawn tokens.
    """
    actor, reference = policies
    chosen = torch.randperm(len(anchor.images), generator=generator)[: anchor.minibatch_size]
    total, num_tokens = 0.0, len(chosen) * anchor.images.tokens.shape[1]
    mine = chosen.tensor_split(team.size)[team.rank].to(anchor.images.tokens.device)
    for rows in mine.split(microbatch_size) if len(mine) else ():
        kl = family.score(actor, anchor.images.select(rows), reference=reference).kl
        (anchor.coef * kl.sum() / num_tokens).backward()
        total += float(kl.detach().sum())
    return sum(team.gather(total)) / len(chosen)

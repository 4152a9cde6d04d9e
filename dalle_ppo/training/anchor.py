"""The anchor: images of the reference, drawn once, on which the policy is held to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from dalle_ppo.base.halving import Halving
from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.config.settings import Config
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.policy.rollout import ALL_AT_ONCE, Means, NoiseSource, collect
from dalle_ppo.rl.records import Experience

GRADIENTS = "computing gradients of"
"""How warnings call the work of which this is a part: what fits there fits here, and the other way round."""


@dataclass(frozen=True)
class Anchor:
    """Images of the reference and how strongly they hold the policy.

    Args:
        images: drawn by the reference, with its states.
        coef: weight of one nat of KL.
        minibatch_size: images per optimiser step.
        temperature: of the reference that the policy is held to, in units of its own.
    """

    images: Experience
    coef: float
    minibatch_size: int
    temperature: float = 1.0


@torch.no_grad()
def draw_anchor(
    family: PolicyFamily, reference: nn.Module, captions: Sequence[CaptionRecord], config: Config
) -> Anchor:
    """Draws the anchor's images, one per caption; the same ones for the same seed, so none are saved."""
    noise, memory_gb = NoiseSource(config.seed, "anchor"), config.rollout.memory_gb
    means = Means(pixels=False)
    drawn = collect(family, family.sampler_weights(reference), list(captions), 1, noise, memory_gb, means)
    drawn, states = replace(drawn, images=None, policy_states=None), drawn.policy_states

    def work(size: int) -> list:
        index = torch.arange(len(drawn), device=drawn.tokens.device)
        return [family.remember(reference, drawn.select(rows)) for rows in index.split(size)]

    # The actor is scored in update.dtype and the sampler has its own: only in float32 do the two agree.
    if states is None or config.update.dtype != "float32":
        kept = Halving().run("scoring", "update.microbatch_size", config.update.microbatch_size, work)
        states = type(kept[0]).cat(kept) if kept[0] is not None else None
    return _anchor(replace(drawn, reference_states=states), config)


def undrawn_anchor(captions: Sequence[CaptionRecord], config: Config) -> Anchor:
    """An anchor of which only the captions are there: for a look at a run that will not be trained."""
    images = Experience(
        captions=tuple(caption.text for caption in captions),
        tags=tuple(caption.tag for caption in captions),
        caption_ids=tuple(caption.id for caption in captions),
        caption_index=None,
        tokens=None,
        sampler_log_probs=None,
        images=None,
    )
    return _anchor(images, config)


def _anchor(images: Experience, config: Config) -> Anchor:
    anchor = config.anchor
    return Anchor(images, anchor.coef, anchor.minibatch_size, anchor.temperature)


def anchor_backward(
    anchor: Anchor,
    family: PolicyFamily,
    policies: tuple[nn.Module, nn.Module],
    microbatch_size: int,
    generator: torch.Generator,
    means: Means = ALL_AT_ONCE,
    redo: Callable[[int], object] = lambda size: None,
) -> float:
    """Adds the gradient of coef times the mean KL(policy, reference) over some of the anchor's tokens.

    The states come from the reference, and the sum over codes is exact, so the gradient has no noise but that
    of the choice of images. At a temperature T the loss is KL + (1 - T) entropy, which is T times the KL from
    the reference at T, but for a constant.

    Args:
        anchor: the images.
        family: scores them.
        policies: the policy that is trained, and the reference.
        microbatch_size: images per forward pass.
        generator: draws which images.
        means: processes that share the images, whose gradients are summed later; and how many images fit.
        redo: takes the number of images at a time and computes the gradient anew to which this one is added;
            called where memory has run out, as half of a sum cannot be taken back.

    Returns:
        The mean KL of these images, nats per image.

    Raises:
        OutOfMemory: one image at a time does not fit in some process; all processes raise it.

    Source: https://arxiv.org/abs/2203.02155 eq. 2 (PPO-ptx).
    Differs: the KL of whole distributions in place of the log-likelihood of drawn tokens.
    """
    (actor, reference), team, tries = policies, means.team, 0
    sharpness = 1.0 - anchor.temperature
    chosen = torch.randperm(len(anchor.images), generator=generator)[: anchor.minibatch_size]
    num_tokens = len(chosen) * anchor.images.tokens.shape[1]
    mine = chosen.tensor_split(team.size)[team.rank].to(anchor.images.tokens.device)

    def backward(size: int) -> float:
        nonlocal tries
        tries += 1
        if tries > 1:
            redo(size)
        total = 0.0
        for rows in mine.split(size) if len(mine) else ():
            images = anchor.images.select(rows)
            scores = family.score(actor, images, entropy=sharpness != 0, reference=reference)
            loss = scores.kl + sharpness * scores.entropy if sharpness else scores.kl
            (anchor.coef * loss.sum() / num_tokens).backward()
            total += float(scores.kl.detach().sum())
        return total

    halving = means.halving or Halving()
    # The others need to know when not even one image fits here: they would wait for its part of the sum.
    total = team.everywhere(
        partial(halving.run, GRADIENTS, "update.microbatch_size", microbatch_size, backward)
    )
    return sum(team.gather(total)) / len(chosen)

"""What the stages of an iteration hand to each other.

B images of M captions, T tokens each; the B / M images of a caption are neighbours.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class RolloutBatch:
    """Images drawn from the policy.

    Args:
        captions: text of each image, B of them.
        tags: NSFW tag of each image's caption.
        caption_ids: stable id of each image's caption.
        caption_index: which of the M distinct captions, int64 [B].
        tokens: int64 [B, T].
        sampler_log_probs: of the tokens, as the cached sampler computed them, float32 [B, T].
        images: uint8 [B, 3, H, W].
    """

    captions: tuple[str, ...]
    tags: tuple[str, ...]
    caption_ids: tuple[str, ...]
    caption_index: Tensor
    tokens: Tensor
    sampler_log_probs: Tensor
    images: Tensor

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class HiddenStates:
    """What a decoder's head is applied to, before each token of N images.

    Args:
        conditional: given the caption, [N, T, D].
        unconditional: given `<s></s>`, [N, T, D]; None where guidance is 1.
    """

    conditional: Tensor
    unconditional: Tensor | None

    def select(self, index: Tensor) -> "HiddenStates":
        """The images at `index`, int64 [b]."""
        unconditional = None if self.unconditional is None else self.unconditional[index]
        return HiddenStates(self.conditional[index], unconditional)

    @classmethod
    def cat(cls, parts: "list[HiddenStates]") -> "HiddenStates":
        """The images of all parts, in order."""
        unconditional = None
        if parts[0].unconditional is not None:
            unconditional = torch.cat([part.unconditional for part in parts])
        return cls(torch.cat([part.conditional for part in parts]), unconditional)


@dataclass(frozen=True)
class ScoredBatch:
    """What policy, reference, critic and reward say of a `RolloutBatch`.

    Args:
        scores: raw rewards, float32 [B].
        reward_parts: named float32 [B].
        old_log_probs: of the tokens, by the training forward, float32 [B, T].
        ref_log_probs: the same of the reference.
        kl: exact KL(policy, reference) of each position's distribution, nats, [B, T].
        entropy: of the policy at each position, nats, [B, T].
        values: of the critic, [B, T]; None without one.
        ref_hidden: of the reference, from which the update makes its whole distribution again at the price of
            the head alone; None where the update does not need it.
    """

    scores: Tensor
    old_log_probs: Tensor
    ref_log_probs: Tensor
    kl: Tensor
    entropy: Tensor
    values: Tensor | None = None
    ref_hidden: HiddenStates | None = None
    reward_parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class UpdateTargets:
    """What the optimisation steps of an iteration need beside tokens and captions.

    Args:
        advantages: [B, T], as the policy loss uses them.
        returns: the critic's targets [B, T]; None without a critic.
        token_weights: importance weights of the tokens [B, T]; None where they are off.
    """

    advantages: Tensor
    returns: Tensor | None = None
    token_weights: Tensor | None = None

"""The images of one iteration and everything known about them, filled in stage by stage.

B images of M captions, T tokens each; the B / M images of a caption are adjacent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

_PER_IMAGE = (
    "caption_index",
    "tokens",
    "kept",
    "sampler_log_probs",
    "images",
    "scores",
    "old_log_probs",
    "ref_log_probs",
    "kl",
    "kl_full",
    "mass_outside",
    "entropy",
    "values",
    "advantages",
    "returns",
    "token_weights",
)


@dataclass(frozen=True)
class Experience:
    """Images drawn from a policy, and what rewards, networks and credit say about them.

    Drawing fills in the first group, the reward the second, the scoring passes the third, and `credit` the
    fourth. A field that has not been filled in yet, or that the run does not use, is None.

    Args:
        captions: text of each image's caption, B of them.
        tags: NSFW tag of each image's caption.
        caption_ids: stable id of each image's caption.
        caption_index: which of the M captions each image belongs to, int64 [B].
        tokens: int64 [B, T].
        sampler_log_probs: log-probs of the tokens, as the cached sampler computed them, float32 [B, T].
        images: uint8 [B, 3, H, W]; None where nobody looks at them.
        kept: the codes that each token was drawn from, int16 [B, T, k]; None if from all. Log-probs, KL and
            entropy are those of the distribution on them.
        prompts: the M captions as the policy's family read them.
        num_truncated: how many of the M captions were too long to be read in full.
        scores: raw rewards, float32 [B].
        reward_parts: parts of the rewards by name, each float32 [B].
        old_log_probs: log-probs of the tokens from the training forward pass, float32 [B, T].
        ref_log_probs: the same from the reference.
        kl: exact KL(policy, reference) at each position, nats, [B, T].
        kl_full: the same over all codes, [B, T]; None without `kept`.
        mass_outside: the policy's probability of all codes but `kept`, [B, T]; None without it.
        entropy: entropy of the policy at each position, nats, [B, T].
        values: the critic's values, [B, T]; None without a critic.
        reference_states: what the family needs to recompute the reference's whole distribution cheaply; has a
            `select` method. None if the update does not need it.
        policy_states: the same for the policy that drew the images. Only for an experience that is scored
            with the weights it was drawn with; else None.
        advantages: as the policy loss uses them, [B, T].
        returns: the critic's targets, [B, T]; None without a critic.
        token_weights: importance weights of the tokens, [B, T]; None if they are off.
        reward_scale: what the scores were divided by.
        has_one_unit: whether the advantages of all captions are in the same unit.
        advantage_std: standard deviation of the advantages before they were whitened.
        advantage_moments: their mean and variance, by which whitening shifted and scaled them.
        credit_numbers: other numbers that describe the credit, by the name of their metric.
    """

    captions: tuple[str, ...]
    tags: tuple[str, ...]
    caption_ids: tuple[str, ...]
    caption_index: Tensor
    tokens: Tensor
    sampler_log_probs: Tensor
    images: Tensor | None
    kept: Tensor | None = None
    prompts: Any = None
    num_truncated: int = 0
    scores: Tensor | None = None
    reward_parts: dict[str, Tensor] = field(default_factory=dict)
    old_log_probs: Tensor | None = None
    ref_log_probs: Tensor | None = None
    kl: Tensor | None = None
    kl_full: Tensor | None = None
    mass_outside: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    reference_states: Any = None
    policy_states: Any = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    token_weights: Tensor | None = None
    reward_scale: float = 1.0
    has_one_unit: bool = False
    advantage_std: float | None = None
    advantage_moments: tuple[float, float] | None = None
    credit_numbers: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.captions)

    def select(self, rows: Tensor) -> "Experience":
        """The images at `rows`, int64 [b]; `prompts` stay whole, as `caption_index` points into them."""
        chosen = {name: value[rows] for name in _PER_IMAGE if (value := getattr(self, name)) is not None}
        order = rows.tolist()
        for name in ("captions", "tags", "caption_ids"):
            values = getattr(self, name)
            chosen[name] = tuple(values[i] for i in order)
        chosen["reward_parts"] = {name: part[rows] for name, part in self.reward_parts.items()}
        for name in ("reference_states", "policy_states"):
            if (states := getattr(self, name)) is not None:
                chosen[name] = states.select(rows)
        return replace(self, **chosen)

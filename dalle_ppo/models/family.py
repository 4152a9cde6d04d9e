"""What a policy family must provide so that the RL core can train it without knowing its networks.

DALL·E's is `models.dalle.family.DalleFamily`; tests/training/test_family.py trains a table of logits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dalle_ppo.rl.kl import entropy, exact_kl
from dalle_ppo.rl.log_pi import gather_log_probs, log_pi_on, mass_outside, places_in
from dalle_ppo.rl.records import Experience

LogPiFunction = Callable[[Tensor], Tensor]
"""Maps `log_pi`, float32 [b, T, V] (or [b, T, k], on a stored set of codes), to one number per token, [b, T];
for quantities that need the whole distribution."""


@dataclass(frozen=True)
class Drawing:
    """Images as a policy drew them.

    Args:
        tokens: int64 [N, T].
        log_probs: their log-probs as the sampler computed them, float32 [N, T].
        images: uint8 [N, 3, H, W]; None if they were not decoded.
        states: what `score` computes the policy's distributions from, with a `select`; None unless kept.
        kept: the codes that each token was drawn from, int16 [N, T, k]; None if from all, or not stored.
    """

    tokens: Tensor
    log_probs: Tensor
    images: Tensor | None
    states: Any = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class TokenScores:
    """A policy's scores for given tokens, [b, T] each.

    Args:
        log_probs: log-probs of the tokens.
        entropy: entropy of the distribution at each position, in nats; None unless asked for.
        ref_log_probs: log-probs of the tokens under the reference; None without one.
        kl: exact KL from the reference at each position, in nats; None without one.
        extra: results of the functions passed as `extra`, by name.
        kl_full: exact KL over all codes where the others are those of a stored set; None elsewhere, in passes
            with a gradient, and without a reference.
        mass_outside: probability of the codes outside that set; None elsewhere and in passes with a gradient.
    """

    log_probs: Tensor
    entropy: Tensor | None = None
    ref_log_probs: Tensor | None = None
    kl: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    kl_full: Tensor | None = None
    mass_outside: Tensor | None = None


class PolicyFamily(Protocol):
    """Draws images for captions and scores given tokens; holds the parts that are never trained."""

    device: torch.device
    text_token_count: int

    def read(self, captions: Sequence[str]) -> tuple[Any, int]:
        """Encodes captions for the policy; returns them, with a `select`, and how many were too long."""

    def num_truncated(self, captions: Sequence[str]) -> int:
        """How many captions are too long to be read in full, without encoding them."""

    def draw(self, weights: nn.Module, prompts: Any, keys: Tensor, plan: Any = None) -> Drawing:
        """Draws images, the same number for each prompt.

        Args:
            weights: from `sampler_weights`.
            prompts: M prompts from `read`.
            keys: noise key of each image, int32 [N, 2], from `rl.noise.noise_keys`.
            plan: from `plan`; None draws all images at once.
        """

    def draw_and_remember(self, weights: nn.Module, prompts: Any, keys: Tensor, plan: Any = None) -> Drawing:
        """`draw` that keeps `states`, so that `score` need not run the policy again. A family may lack it."""

    def draw_tokens(self, weights: nn.Module, prompts: Any, keys: Tensor, plan: Any = None) -> Drawing:
        """`draw_and_remember` that decodes no pixels. A family may lack it."""

    def decode(self, tokens: Tensor, plan: Any = None) -> Tensor:
        """Decodes tokens, int64 [N, T], to pixels, uint8 [N, 3, H, W], as many at a time as `plan` says."""

    def remember(self, policy: nn.Module, experience: Experience) -> Any:
        """Computes states of a frozen policy that save `score` work later.

        Returns:
            An object with a `select(rows)` and a class method `cat(parts)`; None if it would save nothing.
        """

    def score(
        self,
        policy: nn.Module,
        experience: Experience,
        *,
        entropy: bool = False,
        reference: nn.Module | None = None,
        extra: Mapping[str, LogPiFunction] | None = None,
    ) -> TokenScores:
        """Scores the experience's tokens, differentiably in `policy`.

        Args:
            policy: has the current weights.
            experience: supplies tokens, prompts and, if it has them, kept codes and states of policy and
                reference. Those of the policy are used without gradient only.
            entropy: whether to compute the entropy.
            reference: the policy that the exact KL is measured from; None skips the KL.
            extra: functions of the whole log-distribution, by name.
        """

    def new_critic(self, policy: nn.Module) -> nn.Module:
        """A separate network for `values`, initialised from the policy; it predicts 0 at first."""

    def values(self, critic: nn.Module, experience: Experience) -> Tensor:
        """The critic's values before each token, float32 [B, T], differentiable."""

    def trained(self, name: str, which: str) -> bool:
        """Whether the policy's parameter `name` is trained when `actor.trainable` is `which`."""

    def sampler_weights(self, actor: nn.Module, dtype: str = "float32") -> nn.Module:
        """The only snapshot of the actor's weights, for the sampler. Call it again after a step."""

    def plan(self, policy: nn.Module, num_images: int, memory_gb: float, dtype: str | None = None) -> Any:
        """How `num_images` are split to fit `memory_gb`; prints as one line.

        Raises:
            ValueError: not even one image fits.
        """

    def frozen(self) -> Mapping[str, nn.Module]:
        """The networks that are never trained but affect the images, by name."""


def token_scores(
    log_pi: Tensor,
    tokens: Tensor,
    ref_log_pi: Tensor | None = None,
    with_entropy: bool = False,
    extra: Mapping[str, LogPiFunction] | None = None,
    kept: Tensor | None = None,
) -> TokenScores:
    """The last step of every family's `score`.

    Args:
        log_pi: the policy's log-distribution, float32 [b, T, V].
        tokens: int64 [b, T].
        ref_log_pi: the reference's log-distribution, [b, T, V], or None.
        with_entropy: whether to compute the entropy.
        extra: functions of `log_pi`, by name.
        kept: codes that the tokens were drawn from, int16 [b, T, k]: both distributions are renormalised on
            them before anything else. None if from all.
    """
    about_all = {}
    if kept is not None:
        about_all = _about_all_codes(log_pi, ref_log_pi, kept)
        log_pi, tokens = log_pi_on(log_pi, kept), places_in(kept, tokens)
        ref_log_pi = None if ref_log_pi is None else log_pi_on(ref_log_pi, kept)
    # In a fixed order: autograd sums the gradients in reverse order, and rounding depends on it.
    log_probs, ref_log_probs, kl = gather_log_probs(log_pi, tokens), None, None
    if ref_log_pi is not None:
        ref_log_probs = gather_log_probs(ref_log_pi, tokens)
        kl = exact_kl(log_pi, ref_log_pi)
    return TokenScores(
        log_probs=log_probs,
        entropy=entropy(log_pi) if with_entropy else None,
        ref_log_probs=ref_log_probs,
        kl=kl,
        extra={name: function(log_pi) for name, function in (extra or {}).items()},
        **about_all,
    )


def _about_all_codes(log_pi: Tensor, ref_log_pi: Tensor | None, kept: Tensor) -> dict[str, Tensor]:
    """What only metrics ask for, and so not where a gradient is taken: KL over all codes, mass outside."""
    if log_pi.requires_grad:
        return {}
    kl = {} if ref_log_pi is None else {"kl_full": exact_kl(log_pi, ref_log_pi)}
    return kl | {"mass_outside": mass_outside(log_pi, kept)}

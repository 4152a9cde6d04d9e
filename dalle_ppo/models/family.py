"""What a family of policies must be able to do, for the RL core to train one without knowing its networks.

DALL·E's is `models.dalle.family.DalleFamily`; tests/training/test_family.py trains a table of logits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dalle_ppo.rl.kl import entropy, exact_kl
from dalle_ppo.rl.log_pi import gather_log_probs
from dalle_ppo.rl.records import Experience

LogPiFunction = Callable[[Tensor], Tensor]
"""`log_pi`, float32 [b, T, V], to one number per token, [b, T]: for what needs all codes."""


@dataclass(frozen=True)
class Drawing:
    """Images as a policy drew them.

    Args:
        tokens: int64 [N, T].
        log_probs: of those tokens, as the sampler computed them, float32 [N, T].
        images: uint8 [N, 3, H, W].
    """

    tokens: Tensor
    log_probs: Tensor
    images: Tensor


@dataclass(frozen=True)
class TokenScores:
    """What a policy says about given tokens, [b, T] each.

    Args:
        log_probs: of the tokens.
        entropy: of the distribution at each position, nats; None unless asked for.
        ref_log_probs: of the tokens under the reference; None without one.
        kl: exact KL from the reference at each position, nats; None without one.
        extra: what the functions that were handed in make of `log_pi`, by their names.
    """

    log_probs: Tensor
    entropy: Tensor | None = None
    ref_log_probs: Tensor | None = None
    kl: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class PolicyFamily(Protocol):
    """Draws images of captions and scores given tokens; holds what nothing trains."""

    device: torch.device
    text_token_count: int

    def read(self, captions: Sequence[str]) -> tuple[Any, int]:
        """The captions as the policy reads them, with a `select`, and how many were too long."""

    def draw(self, weights: nn.Module, prompts: Any, keys: Tensor, plan: Any = None) -> Drawing:
        """Draws images, the same number of each prompt.

        Args:
            weights: of `sampler_weights`.
            prompts: M of them, of `read`.
            keys: noise of each image, int32 [N, 2], of `rl.noise.noise_keys`.
            plan: of `plan`; None draws all images at once.
        """

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens, int64 [N, T], to pixels, uint8 [N, 3, H, W]."""

    def remember(self, policy: nn.Module, experience: Experience) -> Any:
        """States of a frozen policy that save `score` work on it later.

        Returns:
            What has a `select(rows)` and a class method `cat(parts)`; None where it would save nothing.
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
            policy: with the current weights.
            experience: its tokens, prompts, and reference states where it has some.
            entropy: whether the entropy is wanted.
            reference: what the exact KL is taken from; None computes none.
            extra: functions of the whole log-distribution, by name.
        """

    def new_critic(self, policy: nn.Module) -> nn.Module:
        """A network of its own that `values` reads, started from the policy; its values are 0."""

    def values(self, critic: nn.Module, experience: Experience) -> Tensor:
        """The critic's values before each token, float32 [B, T], differentiable."""

    def trained(self, name: str, which: str) -> bool:
        """Whether `actor.trainable`, `which`, includes the policy's parameter `name`."""

    def sampler_weights(self, actor: nn.Module, dtype: str = "float32") -> nn.Module:
        """What the sampler reads of an actor: a snapshot, and the only one. Call it again after a step."""

    def plan(self, policy: nn.Module, num_images: int, memory_gb: float, dtype: str | None = None) -> Any:
        """How `num_images` are split to fit `memory_gb`; prints as one line.

        Raises:
            ValueError: not even one image fits.
        """

    def frozen(self) -> Mapping[str, nn.Module]:
        """The networks that nothing trains and that decide about images, by name."""


def token_scores(
    log_pi: Tensor,
    tokens: Tensor,
    ref_log_pi: Tensor | None = None,
    with_entropy: bool = False,
    extra: Mapping[str, LogPiFunction] | None = None,
) -> TokenScores:
    """What every family's `score` ends with.

    Args:
        log_pi: of the policy, float32 [b, T, V].
        tokens: int64 [b, T].
        ref_log_pi: of the reference, [b, T, V], or None.
        with_entropy: whether the entropy is wanted.
        extra: functions of `log_pi`, by name.
    """
    # Computed in a fixed order: autograd adds the gradients up in the reverse of it, and rounding follows.
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
    )

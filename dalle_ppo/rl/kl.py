"""KL divergence from the reference: per-token estimators and the exact value.

The policy `pi` and the reference `ref` are distributions over the same V drawable codes, both after guidance
and temperature. k1, k2 and k3 look only at the code that was sampled; `exact_kl` and `entropy` sum over all
V. All results are in nats per token; nats per image are their sum over the T tokens.

Source: http://joschu.net/blog/kl-approx.html (Schulman, "Approximating KL divergence").
"""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from dalle_ppo.rl.shapes import check_same_shape


def kl_k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """Log-ratio of the sampled codes: unbiased for KL(pi, ref), can be negative for one token.

    Args:
        log_probs: [B, T] log pi of the sampled codes.
        ref_log_probs: [B, T] log ref of the same codes after the same earlier tokens.

    Returns:
        [B, T] nats.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return log_probs - ref_log_probs


def kl_k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """Half the squared log-ratio: never negative, biased as a value, unbiased gradient on-policy.

    Args:
        log_probs: [B, T] log pi of the sampled codes.
        ref_log_probs: [B, T] log ref of the same codes.

    Returns:
        [B, T] nats. Its expected gradient is the sum over tokens of the gradient of each token's own KL:
        nothing is charged for KL that a token causes later. That holds for codes sampled from the policy
        being differentiated, so it drifts as the epochs over one batch go on.

    Raises:
        ValueError: the shapes differ.
    """
    return 0.5 * kl_k1(log_probs, ref_log_probs).square()


def kl_k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """`r - 1 - log r` with `r = ref / pi`: unbiased for KL(pi, ref), never negative; for reports.

    Args:
        log_probs: [B, T] log pi of the sampled codes.
        ref_log_probs: [B, T] log ref of the same codes.

    Returns:
        [B, T] nats.

    Raises:
        ValueError: the shapes differ.
    """
    log_r = -kl_k1(log_probs, ref_log_probs)
    return log_r.expm1() - log_r


def exact_kl(log_pi: Tensor, ref_log_pi: Tensor) -> Tensor:
    """KL(pi, ref) summed over the whole vocabulary: no action noise.

    Args:
        log_pi: [..., V] normalised log-probabilities; -inf for codes outside the support.
        ref_log_pi: [..., V] the reference's, after the same earlier tokens.

    Returns:
        [...] nats, never negative beyond rounding; +inf where pi draws a code that ref cannot.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(log_pi=log_pi, ref_log_pi=ref_log_pi)
    # Filled on the way in, not on the way out: `where` around 0 * inf has the right value and a NaN gradient.
    outside = log_pi.isneginf()
    log_ratio = log_pi.masked_fill(outside, 0.0) - ref_log_pi.masked_fill(outside, 0.0)
    return (log_pi.exp() * log_ratio).sum(-1)


def entropy(log_pi: Tensor) -> Tensor:
    """Entropy of the distribution that is sampled from.

    Args:
        log_pi: [..., V] normalised log-probabilities; -inf for codes outside the support.

    Returns:
        [...] nats, between 0 and log V.
    """
    return -(log_pi.exp() * log_pi.masked_fill(log_pi.isneginf(), 0.0)).sum(-1)


@dataclass(frozen=True)
class AdaptiveKL:
    """A KL coefficient that steers the policy towards a target distance from the reference.

    Args:
        kl_coef: current coefficient, > 0.
        target: wanted KL in nats per image (summed over the T tokens), > 0.
        horizon: images over which the whole relative error is acted on; larger is slower, > 0.
        error_clip: largest relative error that one update acts on, > 0.

    Raises:
        ValueError: a value is not a positive finite number.

    Source: https://arxiv.org/abs/1909.08593 section 2.2 (Ziegler et al.); `AdaptiveKLController` in
        https://github.com/openai/lm-human-preferences.
    """

    kl_coef: float
    target: float
    horizon: float
    error_clip: float = 0.2

    def __post_init__(self) -> None:
        for name in ("kl_coef", "target", "horizon", "error_clip"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"adaptive KL: {name} = {value} must be a positive finite number")

    def update(self, kl_per_image_nats: float, num_images: int) -> "AdaptiveKL":
        """Return the controller after one batch.

        Args:
            kl_per_image_nats: measured mean KL of the batch, nats per image.
            num_images: images in the batch.

        Returns:
            A controller whose `kl_coef` is multiplied by `1 + error * num_images / horizon`, with `error` the
            relative distance from the target, clipped at `error_clip` either way.

        Raises:
            ValueError: the KL is not finite, or the batch is so large against the horizon that the
            coefficient could
                reach zero or below.
        """
        if not math.isfinite(kl_per_image_nats):
            raise ValueError(f"adaptive KL: the measured KL is {kl_per_image_nats}, it must be finite")
        if self.error_clip * num_images >= self.horizon:
            raise ValueError(
                f"adaptive KL: horizon = {self.horizon} images must exceed {self.error_clip} of a batch "
                f"of {num_images} images, or one update could make kl_coef negative: raise the horizon"
            )
        error = (kl_per_image_nats - self.target) / self.target
        error = min(max(error, -self.error_clip), self.error_clip)
        return replace(self, kl_coef=self.kl_coef * (1.0 + error * num_images / self.horizon))

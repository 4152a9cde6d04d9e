"""KL divergence from the reference: per-token estimators and the exact value.

The policy `pi` and the reference `ref` are distributions over the same V drawable codes, both after guidance
and temperature. k1, k2 and k3 look only at the code that was sampled; `exact_kl` and `entropy` sum over all
V. All results are in nats per token; nats per image are their sum over the T tokens.

Source: http://joschu.net/blog/kl-approx.html (Schulman, "Approximating KL divergence").
"""

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
        [B, T] nats. Its expected gradient is the sum over tokens of the gradient of each token's own KL: no
        token is charged for KL that it causes later. That holds for codes sampled from the policy being
        differentiated, so it becomes less exact with every epoch over one batch.

    Raises:
        ValueError: the shapes differ.
    """
    return 0.5 * kl_k1(log_probs, ref_log_probs).square()


def kl_k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """`r - 1 - log r` with `r = ref / pi`: unbiased for KL(pi, ref), never negative; for reporting.

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
    """KL(pi, ref) summed over the whole vocabulary, without sampling noise.

    Args:
        log_pi: [..., V] normalised log-probabilities; -inf for codes outside the support.
        ref_log_pi: [..., V] the same for the reference, after the same earlier tokens.

    Returns:
        [...] nats, never negative beyond rounding; +inf where pi can draw a code that ref cannot.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(log_pi=log_pi, ref_log_pi=ref_log_pi)
    # Filled before the product, not after it: `where` around 0 * inf has the right value but a NaN gradient.
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

"""Which KL penalties have the gradient of KL(policy, reference). No torch, because settings import this."""

ESTIMATORS = ("k1", "k2", "k3", "exact")
PLACEMENTS = ("reward", "loss")

_REFUSED = {
    ("k1", "loss"): "its expected gradient is zero, so it adds noise but no penalty",
    ("k3", "loss"): "its gradient is that of the other divergence, KL(reference, policy)",
    ("k2", "reward"): "its policy gradient is not that of the KL (biased)",
    ("k3", "reward"): "its policy gradient is that of KL(policy, reference) - KL(reference, policy) (biased)",
    ("exact", "reward"): (
        "it does not depend on the token it is added to, so the KL of that token's own distribution "
        "gets no gradient (biased)"
    ),
}


def check_kl_placement(estimator: str, placement: str) -> None:
    """Refuse a KL penalty whose gradient is not that of KL(pi, ref).

    The allowed ones are k1 in the reward (the full gradient, later tokens included), and k2 or the exact KL
    in the loss (each token's own KL only).

    Args:
        estimator: "k1", "k2", "k3" or "exact".
        placement: "reward" (subtracted from each token's reward) or "loss" (added to each token's loss).

    Raises:
        ValueError: a name is unknown, or the combination optimises something else; the message gives the
        reason.

    Source: https://arxiv.org/abs/2506.09477 (Tang & Munos, "On a few pitfalls in KL divergence
        gradient estimation for RL"); the enumerated gradients are in tests/training/test_policy_gradient.py.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"kl.estimator {estimator!r} is unknown: use one of {', '.join(ESTIMATORS)}")
    if placement not in PLACEMENTS:
        raise ValueError(f"kl.placement {placement!r} is unknown: use one of {', '.join(PLACEMENTS)}")
    reason = _REFUSED.get((estimator, placement))
    if reason is not None:
        raise ValueError(
            f"kl.estimator {estimator} with kl.placement {placement} is refused: {reason}. "
            "Use k1 with reward, or k2 or exact with loss"
        )

"""Settings of the penalty for moving away from the reference."""

from dataclasses import dataclass
from typing import Literal

from dalle_ppo.base.checks import at_least_one, not_negative, positive
from dalle_ppo.rl.kl_placement import check_kl_placement


@dataclass(frozen=True)
class KlConfig:
    """The penalty for moving away from the reference."""

    kl_coef: float = 0.26
    """Weight of one nat of KL, in units of the advantages if placed in the loss, otherwise of the normalised
    score. Default 0.26, measured on the built-in world (benchmarks/RESULTS.md). Raise it when pictures lose
    what the reference got right; lower it when the reward stalls. The metric `kl_coef_raw` is the same weight
    in units of the score."""
    estimator: Literal["k1", "k2", "k3", "exact"] = "exact"
    """How the KL is measured: "k1", "k2" or "exact" (http://joschu.net/blog/kl-approx.html); "k3" is
    always refused, as its gradient is wrong in either place. Default exact, a sum over all codes: it has no
    sampling noise, and it holds the policy in place wherever the reward is indifferent. Use k1 to charge
    tokens for the KL they cause later."""
    placement: Literal["reward", "loss"] = "loss"
    """Where the KL goes: "reward" takes k1, "loss" takes k2 or exact. The other combinations have the wrong
    gradient and are refused (arXiv 2506.09477). In the loss, no token is charged for KL that it causes later.
    Default loss, our own; reward is usual (arXiv 1909.08593). Use reward if early tokens should pay for what
    they lead to, or to compare with other work."""
    target: float | None = None
    """Steer the coefficient towards this KL, in nats per image; null keeps it fixed. Default null. Set it
    (arXiv 1909.08593) when you know how far the policy may move, but not which weight keeps it there."""
    horizon: int = 5000
    """Images over which the coefficient adapts to the target. Default 5000, half of that in arXiv 1909.08593.
    Raise it for slower, steadier changes."""
    max_kl: float | None = 100.0
    """The run stops, with a checkpoint, when the policy is further than this from the reference, in nats per
    image: the policy has collapsed. null never stops the run. Default 100.0, our own: far above what good
    runs on the built-in world reach (benchmarks/RESULTS.md). Raise it for images with more tokens."""

    def __post_init__(self) -> None:
        check_kl_placement(self.estimator, self.placement)
        not_negative(self, "kl", "kl_coef")
        at_least_one(self, "kl", "horizon")
        positive(self, "kl", "target", "max_kl")
        if self.target is not None and not self.kl_coef > 0:
            raise ValueError(f"kl.kl_coef is {self.kl_coef}; with kl.target it must start above 0")

"""The metrics of one iteration's updates."""

import math
from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor

from dalle_ppo.base.team import ALONE, Team
from dalle_ppo.rl.losses import PolicyLoss


@dataclass(frozen=True)
class PolicyTerms:
    """The actor's loss for some rows and its parts, per token [b, T].

    Args:
        loss: to be minimised, with gradient.
        policy: the objective's loss alone, before importance weights.
        kl: the KL's part of the loss; None if it is not placed there.
        entropy: the entropy's part; None if its coefficient is 0.
    """

    loss: Tensor
    policy: PolicyLoss
    kl: Tensor | None
    entropy: Tensor | None


class UpdateLog:
    """Collects the metrics of one iteration's updates."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.steps: dict[str, list[float]] = defaultdict(list)
        self.anchor_kl: list[float] = []
        self.minibatches = self.actor_minibatches = 0
        self.skipped = 0
        self.ratio_max: float | None = None
        self.first_deviation: float | None = None
        self.last_approx_kl = 0.0
        self._approx_kl = 0.0

    def add_policy(self, terms: PolicyTerms, num_tokens: float) -> float:
        """Adds one microbatch of a minibatch of `num_tokens` tokens; returns its part of the mean loss."""
        policy = terms.policy
        for name, part in (("policy", policy.loss), ("kl", terms.kl), ("entropy", terms.entropy)):
            if part is not None:
                self.sums[f"{name}_loss"] += float(part.detach().sum()) / num_tokens
        self.sums["clip_fraction"] += float(policy.clipped.sum()) / num_tokens
        self._approx_kl += float(policy.approx_kl.sum()) / num_tokens
        self.ratio_max = _larger(self.ratio_max, float(policy.ratio.max()))
        if self.minibatches == 0:
            self.first_deviation = _larger(self.first_deviation, float((policy.ratio - 1).abs().max()))
        return float(terms.loss.detach().sum()) / num_tokens

    def add_step(self, name: str, norm: float | None) -> None:
        if norm is None:
            self.skipped += 1
        else:
            self.steps[name].append(norm)

    def end_minibatch(
        self, train_actor: bool, actor_loss: float, critic_loss: float, team: Team
    ) -> tuple[float, float]:
        """Ends a minibatch; `last_approx_kl` is then that of all processes.

        Args:
            train_actor: whether the actor was scored.
            actor_loss, critic_loss: parts of the mean losses from this process's rows.
            team: the processes that share the minibatch.

        Returns:
            The mean losses of actor and critic over the whole minibatch.
        """
        self.sums["approx_kl"] += self._approx_kl
        parts = zip(*team.gather((self._approx_kl, actor_loss, critic_loss)), strict=True)
        self.last_approx_kl, actor_loss, critic_loss = (sum(part) for part in parts)
        self._approx_kl = 0.0
        self.minibatches += 1
        self.actor_minibatches += train_actor
        return actor_loss, critic_loss

    def _add_up(self, team: Team) -> None:
        """Turns what this process's rows have given into what all have given."""
        seen = team.gather((dict(self.sums), self.ratio_max, self.first_deviation))
        names = dict.fromkeys(name for sums, _, _ in seen for name in sums)
        self.sums = {name: sum(sums.get(name, 0.0) for sums, _, _ in seen) for name in names}
        for _, ratio, deviation in seen:
            self.ratio_max = self.ratio_max if ratio is None else _larger(self.ratio_max, ratio)
            if deviation is not None:
                self.first_deviation = _larger(self.first_deviation, deviation)

    def metrics(self, team: Team = ALONE) -> dict[str, float | None]:
        """The metrics, of all processes."""
        if team.size > 1:
            self._add_up(team)
        names = ("policy_loss", "kl_loss", "entropy_loss", "value_loss", "clip_fraction", "approx_kl")
        means: dict[str, float | None] = dict.fromkeys(names)
        for name in self.sums.keys() & means.keys():
            count = self.minibatches if name == "value_loss" else self.actor_minibatches
            means[name] = self.sums[name] / count if count else None
        norms = {name: sum(norms) / len(norms) for name, norms in self.steps.items()}
        return {
            **means,
            **norms,
            "anchor_kl": sum(self.anchor_kl) / len(self.anchor_kl) if self.anchor_kl else None,
            "ratio_max": self.ratio_max,
            "ratio_first_minibatch_max_deviation": self.first_deviation,
            "skipped_updates": self.skipped,
        }


def _larger(a: float | None, b: float) -> float:
    """The larger of two, ignoring None; NaN if either is NaN, which `max` may miss."""
    return b if a is None or math.isnan(b) else a if math.isnan(a) else max(a, b)

"""Settings of RLOO (arXiv 2402.14740)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dalle_ppo.config.objective_checks import needs_advantage, needs_one_step

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config


@dataclass(frozen=True)
class Settings:
    """RLOO: the policy gradient with a leave-one-out baseline, with one step per batch; it has no settings of
    its own."""


DEFAULTS: dict[str, object] = {
    "credit.advantage": "rloo",
    # The paper's k.
    "rollout.samples_per_caption": 4,
    # After one step, the batch no longer comes from the current policy.
    "update.minibatch_size": None,
    "update.epochs": 1,
}


def check(config: "Config") -> None:
    """Refuses another advantage, and more than one step per batch."""
    needs_advantage(config, "rloo", "it compares an image with the others of its caption")
    needs_one_step(config)

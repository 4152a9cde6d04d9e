"""Settings of REINFORCE (Williams 1992; DDPO_SF in arXiv 2305.13301)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dalle_ppo.config.objective_checks import needs_one_step

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config


@dataclass(frozen=True)
class Settings:
    """REINFORCE: the plain policy gradient, with one step per batch; it has no settings of its own."""


# After one step, the batch no longer comes from the current policy.
DEFAULTS: dict[str, object] = {"update.minibatch_size": None, "update.epochs": 1}


def check(config: "Config") -> None:
    """Refuses more than one step per batch."""
    needs_one_step(config)

"""Settings of REINFORCE (Williams 1992; DDPO_SF in arXiv 2305.13301)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config


@dataclass(frozen=True)
class Settings:
    """REINFORCE: the plain policy gradient, with one step per batch; it has no settings of its own."""


# After one step, the batch no longer comes from the current policy.
DEFAULTS: dict[str, object] = {"update.minibatch_size": None, "update.epochs": 1}


def check(config: "Config") -> None:
    """Refuses more than one step per batch."""
    if config.update.epochs > 1:
        raise ValueError(
            f"update.epochs is {config.update.epochs}; objective reinforce needs 1: after one step, the "
            "batch no longer comes from the current policy"
        )
    if config.minibatches > 1:
        raise ValueError(
            f"update.minibatch_size is {config.update.minibatch_size}; objective reinforce needs null, the "
            "whole batch: after one step, it no longer comes from the current policy"
        )

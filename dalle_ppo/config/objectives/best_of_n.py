"""Settings of the likelihood of the best of n images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dalle_ppo.config.own_weights import OWN_WEIGHTS, check_images_per_caption, check_own_weights

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config


@dataclass(frozen=True)
class Settings:
    """Best of n: the likelihood of each caption's best image; n is `rollout.samples_per_caption`."""


# The best of 24 captions are few enough for one step; four passes make as many steps as PPO takes.
DEFAULTS: dict[str, object] = OWN_WEIGHTS | {
    "rollout.samples_per_caption": 4,
    "update.minibatch_size": None,
    "update.epochs": 4,
}


def check(config: "Config") -> None:
    """Refuses settings that it does not read, and captions with one image."""
    check_own_weights(config)
    check_images_per_caption(config, "objective best_of_n")
